"""Faults of the links: down, reset, silent, slow, narrow, sliced, cut at a step."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.chaos.fault import Scene, Skipped, Strike, until
from tests.chaos.faults.processes import let_pass
from tests.chaos.proxy import Flow
from tests.chaos.steps import Step
from tests.chaos.system import LINKS


def cut_at(link: str, what: str, *steps: Step) -> Strike:
    """The link breaks at a step, each in its turn, on whichever connection comes to it next."""

    @contextmanager
    def strike(scene: Scene) -> Iterator[str]:
        step = steps[scene.number % len(steps)]
        done = scene.system.links[link].proxies[0].cut(step)
        until(done.is_set, 30, what)
        yield what

    return strike


@contextmanager
def down(scene: Scene) -> Iterator[str]:
    """A link is down for a while, or all its connections are reset at once."""
    name = scene.turn(*LINKS)
    link = scene.system.links[name]
    if scene.chance.random() < 0.5:
        link.reset()
        yield f"{name} reset"
        return
    link.down()
    yield f"{name} down"
    link.heal()


@contextmanager
def silent(scene: Scene) -> Iterator[str]:
    """A black hole: packets are dropped in both directions."""
    name = scene.turn(*LINKS)
    scene.system.links[name].hole()
    yield f"{name} drops every packet"
    scene.system.links[name].heal()


@contextmanager
def bad(scene: Scene) -> Iterator[str]:
    """A link that is late, narrow, or hands out a few bytes at a time."""
    name = scene.turn(*LINKS)
    how, flow = scene.chance.choice(
        [
            ("200 ± 200 ms", Flow(latency=0.2, jitter=0.2, answers_only=True)),
            ("10 KB/s", Flow(rate=10_000)),
            ("7 bytes at a time", Flow(slice=7)),
        ]
    )
    scene.system.links[name].let_flow(flow)
    yield f"{name}: {how}"
    scene.system.links[name].heal()


def at_once(*strikes: Strike) -> Strike:
    """Two of these at the same time; or every link in turn, healed in another order."""

    @contextmanager
    def strike(scene: Scene) -> Iterator[str]:
        if scene.number % 5 == 4:
            yield from _swizzle(scene)
            return
        with ExitStack() as stack:
            said = []
            for each in scene.chance.sample(strikes, 2):
                try:
                    said.append(stack.enter_context(each(scene)))
                except Skipped:
                    continue
            yield " and ".join(said)

    return strike


def _swizzle(scene: Scene) -> Iterator[str]:
    """Links go down one by one, and are healed one by one in another order."""
    names = scene.chance.sample(LINKS, len(LINKS))
    for name in names:
        scene.system.links[name].down()
        let_pass(scene.chance.uniform(0.1, 0.6))
    yield f"{', '.join(names)} down one by one"
    for name in scene.chance.sample(LINKS, len(LINKS)):
        scene.system.links[name].heal()
        let_pass(scene.chance.uniform(0.1, 0.6))
