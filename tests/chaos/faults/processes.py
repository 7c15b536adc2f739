"""Faults of our own processes: killed, stopped, replaced, starved, with a wrong clock."""

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from eventcore.model.event import NewEvent
from eventcore.readmodel.records import parts_of
from eventcore.store.port import Stream
from eventcore.store.postgres import Postgres
from local.processes import store_login
from local.servers import free_port
from tests.bench.machine import family
from tests.chaos.fault import Scene, Skipped, Unmet, until
from tests.chaos.journal import Entry
from tests.chaos.system import PROJECTIONS, System

ALL = (
    "gateway", "user-service", "order-service", "user-relay", "order-relay",
    "user-projector", "credit-projector", "order-projector", "order-user-sync", "order-customers",
)  # fmt: skip

REPLACED = (
    "user-service", "order-projector", "order-relay", "order-service",
    "user-projector", "order-user-sync", "user-relay", "order-service", "order-customers",
)  # fmt: skip
"""The processes that can have a replica here; the gateway has one port."""

POINTS = (
    ("append:begin", "order-service"),
    ("append:committed", "order-service"),
    ("wakeup:begin", "user-service"),
    ("relay:read", "order-relay"),
    ("relay:published", "order-relay"),
    ("relay:confirmed", "user-relay"),
    ("relay:saved", "order-relay"),
    ("projector:delivered", "order-projector"),
    ("projector:written", "user-projector"),
    ("projector:acknowledged", "order-projector"),
    ("sweep:caught-up", "user-projector"),
    ("projector:parking", "user-projector"),
    ("view:written", "order-customers"),
    ("rebuild:switched", "user-projector"),
)
"""The points, and a process that comes past each."""


@contextmanager
def killed(scene: Scene) -> Iterator[str]:
    """SIGKILL one of the processes, each in its turn."""
    name = scene.turn(*ALL)
    scene.system.shop.kill(name)
    yield f"{name} killed"
    scene.system.shop.launch(name)


@contextmanager
def killed_over_and_over(scene: Scene) -> Iterator[str]:
    """A projector dies on the same deliveries, more often than the delivery limit allows."""
    name, times = "order-projector", 22
    for _ in range(times):
        file = scene.system.arm(name, "projector:delivered")
        scene.system.shop.launch(name)
        until(lambda file=file: not file.exists(), 30, f"{name} takes a delivery")  # type: ignore[misc]
        until(lambda: not scene.system.shop.runs(name), 10, f"{name} dies")
    yield f"{name} killed {times} times before it wrote"
    scene.system.shop.launch(name)


@contextmanager
def killed_at_a_point(scene: Scene) -> Iterator[str]:
    """SIGKILL between two steps, each point in its turn."""
    point, name = POINTS[scene.number % len(POINTS)]
    system = scene.system
    if point == "rebuild:switched":
        folder = system.folder / "failpoints" / "tool"
        folder.mkdir(exist_ok=True)
        (folder / point).touch()
        done = system.tool(name, "rebuild", "users", "--yes", FAILPOINTS=str(folder))
        if done.returncode != -signal.SIGKILL:
            raise Unmet(f"the rebuild did not come to {point}: {done.stderr[-300:]}")
        yield f"the rebuild killed at {point}"
        return
    file = system.arm(name, point)
    poisoned = _poison(scene) if point == "projector:parking" else ""
    until(lambda: not file.exists(), 30, f"{name} comes to {point}")
    if not name.endswith("service"):  # of a service a worker dies, and is replaced
        until(lambda: not system.shop.runs(name), 10, f"{name} dies at {point}")
    yield f"{name} killed at {point}"
    system.shop.launch(name)
    if poisoned:
        _pass_over(scene, poisoned)


def _poison(scene: Scene) -> str:
    """Append a user of our own with an event that no projection knows; the stream's id."""
    user, command = uuid4(), uuid4().hex
    scene.plant(Entry(command, "create user", str(user), {}, 2, planted=True))
    login = store_login(scene.system.postgres.address, "user", "service", scene.system.secrets)
    store = Postgres(login, 1)
    created = NewEvent(uuid4(), "USER_CREATED", 1, {"name": "Ada", "email": "ada@example.com"})
    married = NewEvent(uuid4(), "USER_MARRIED", 1, {})
    store.append(Stream("user", user), 0, [created, married], {"causationId": command})
    store.close()
    return str(user)


def _pass_over(scene: Scene, user: str) -> None:
    """Decide, as an operator does, that both projections of users leave the event out."""
    for name, model, process in (
        ("users", scene.system.models["user"], "user-projector"),
        ("known-users", scene.system.models["order"], "order-user-sync"),
    ):
        number = model.generations(name).serving
        generation = name if number == 1 else f"{name}.{number}"
        until(lambda m=model, g=generation: user in m.parked(g), 30, f"{name} parks it")  # type: ignore[misc]
        skip = ("parked", "skip", name, user, "--why", "planted", "--yes")
        done = scene.system.tool(process, *skip)
        if done.returncode:
            raise Unmet(f"skip: {done.stdout}{done.stderr[-300:]}")


@contextmanager
def stopped(scene: Scene) -> Iterator[str]:
    """SIGSTOP; where it is a relay, another takes its lock meanwhile, and it wakes as a zombie."""
    name = scene.turn("order-relay", "order-projector", "user-service", "user-relay",
                      "order-user-sync", "order-service", "order-customers")  # fmt: skip
    system = scene.system
    pids = family(system.shop.pid(name))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with ExitStack() as stack:
        try:
            if name.endswith("relay"):
                service = name.split("-")[0]
                stack.enter_context(system.beside(name))
                _end_lock_holder(system, service)
            yield f"{name} stopped{', its lock taken over' if name.endswith('relay') else ''}"
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


def _end_lock_holder(system: System, service: str) -> None:
    """End the session that holds a relay's lock, and wait until another has it."""
    holder = (
        "select l.pid from pg_locks l join pg_database d on d.oid = l.database"
        " where l.locktype = 'advisory' and l.granted and d.datname = %s"
    )
    [[old]] = system.sql("postgres", holder, (f"{service}_event_db",))
    system.sql("postgres", "select pg_terminate_backend(%s)", (old,))

    def taken() -> bool:
        found = system.sql("postgres", holder, (f"{service}_event_db",))
        return bool(found and found[0][0] != old)

    until(taken, 20, "another relay takes the lock")


@contextmanager
def replaced(scene: Scene) -> Iterator[str]:
    """SIGTERM, with another replica there: nobody notices."""
    name = scene.turn(*REPLACED)
    system = scene.system
    if not name.endswith("service"):
        with system.beside(name):
            system.shop.stop(name)
            yield f"{name} replaced"
            system.shop.start(name)
        return
    port = free_port()
    with system.beside(name, port):
        usual = _point(system, name, port)
        system.shop.stop(name)
        yield f"{name} replaced by another, and back"
        system.shop.start(name)
        _point(system, name, usual)


def _point(system: System, name: str, port: int) -> int:
    """Let new connections to a service go to another port; the port before."""
    place = 0 if name == "user-service" else 1
    proxies = [system.links[link].proxies[place] for link in ("gateway", "feed")]
    before = proxies[0].target
    for proxy in proxies:
        proxy.target = port
    return before


@contextmanager
def wrong_clock(scene: Scene) -> Iterator[str]:
    """One process lives in another time: its wall clock is shifted, or runs at another rate."""
    name, clock = [
        ("order-projector", {"CLOCK_SHIFT": "3600"}),
        ("user-service", {"CLOCK_SHIFT": "-3600"}),
        ("order-relay", {"CLOCK_RATE": "2"}),
        ("order-service", {"CLOCK_RATE": "0.5"}),
        ("order-customers", {"CLOCK_SHIFT": "3600"}),
    ][scene.number % 5]
    with scene.system.in_place_of(name, {**clock, "LD_PRELOAD": _clock(scene)}) as shop:
        shop.await_ready()
        yield f"{name} with {clock}"
    for projection, service, process in PROJECTIONS:
        if process == name:  # it was killed, so that it has kept its lease
            model = scene.system.models[service]
            part = parts_of(projection, model.generations(projection.name).serving)[0].name
            before = model.checkpoint(part).position
            until(lambda: model.checkpoint(part).position > before, 60, "another one sweeps")  # noqa: B023


def _clock(scene: Scene) -> str:
    """The library that shifts a clock, compiled once a run."""
    library = scene.system.folder / "clock.so"
    if not library.exists():
        source = Path(__file__).parent.parent / "clock.c"
        compile_ = ("cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl")
        try:
            subprocess.run(compile_, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Skipped(f"no C compiler here, so no clock can be shifted: {error}") from error
    return str(library)


@contextmanager
def starved(scene: Scene) -> Iterator[str]:
    """The kernel kills a process for its memory; or it may open 64 descriptors."""
    yield from _few_descriptors(scene) if scene.number % 2 else _out_of_memory(scene)


def _out_of_memory(scene: Scene) -> Iterator[str]:
    """A memory group with no room for more than the process has, while it is kept busy."""
    name, system = "order-projector", scene.system
    with _group("memory") as group:
        enter = ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")
        with system.in_place_of(name, {}, enter) as shop:
            shop.await_ready()

            def dies() -> bool:
                _leave_no_room(group)
                return not shop.runs(name)

            until(dies, 60, f"{name} is killed for its memory")
            yield f"{name} killed by the kernel, out of memory"


def _leave_no_room(group: Path) -> None:
    used = int((group / "memory.usage_in_bytes").read_text())
    for room in (0, 64 << 10, 1 << 20):
        try:
            (group / "memory.limit_in_bytes").write_text(str(used + room))
            return
        except OSError:
            continue  # it has grown meanwhile


def _few_descriptors(scene: Scene) -> Iterator[str]:
    pids = family(scene.system.shop.pid("user-service"))
    usual = resource.prlimit(pids[0], resource.RLIMIT_NOFILE)
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, usual[1]))
    yield "user-service may open 64 descriptors"
    for pid in pids:
        if Path(f"/proc/{pid}").exists():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)


@contextmanager
def little_cpu(scene: Scene) -> Iterator[str]:
    """A tenth of a core for one process."""
    name = "order-projector"
    with _group("cpu") as group:
        (group / "cpu.cfs_quota_us").write_text("10000")
        (group / "cgroup.procs").write_text(str(scene.system.shop.pid(name)))
        yield f"{name} has a tenth of a core"


@contextmanager
def _group(kind: str) -> Iterator[Path]:
    """A control group of our own (version 1); what is in it goes back to its parent."""
    root = Path("/sys/fs/cgroup") / kind
    group = root / f"chaos-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise Skipped(f"no control group can be made here: {error}") from error
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (root / "cgroup.procs").write_text(pid)
        until(lambda: not (group / "cgroup.procs").read_text(), 10, "the group is empty")
        group.rmdir()


@contextmanager
def slow_clients(scene: Scene) -> Iterator[str]:
    """Many who never finish a request; or many more at once than can be served."""
    place = urlsplit(scene.system.shop.url("gateway"))
    count = 300 if scene.number % 2 == 0 else 5000
    body = b"POST /users HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\n"
    begun = body + b"Content-Length: 60\r\n\r\n{" if scene.number % 2 == 0 else b""
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            try:
                held.append(socket.create_connection((place.hostname, place.port), timeout=2))
                held[-1].sendall(begun)
            except OSError:
                break  # it takes no more, which is its right
        yield f"{len(held)} clients that {'never finish' if begun else 'say nothing'}"
    finally:
        for each in held:
            each.close()


def let_pass(seconds: float) -> None:
    """How long a fault lasts is a length of time; nothing is judged by it."""
    time.sleep(seconds)
