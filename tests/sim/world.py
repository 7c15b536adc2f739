"""Simulated time, processes that are switched at each call of a server, chance, and the trace.

A process is a greenlet that runs real code. It gives up control only at a `point`, which the
simulated servers have at each call; the world then does whatever is due next. Nothing else in it
depends on real time, threads, or the order of a set, so one seed is one sequence of steps.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from random import Random
from threading import Event

from greenlet import getcurrent, greenlet

from eventcore.clock import Clock
from tests.sim.states import DEATHS

EPOCH = datetime(2026, 1, 16, 10, tzinfo=UTC)
"""When every simulation begins."""

POLL = 0.004
"""Seconds after which a process that waits for something looks first; then ever less often."""


class Crash(BaseException):
    """The process is killed where it is: nothing may catch it, and nothing more has an effect."""


@dataclass(eq=False)
class Process:
    """One life of a process: a new one has the same name and another number."""

    name: str
    number: int
    main: Callable[[], object]
    stop: "Stop"
    greenlet: "greenlet | None" = None
    at: str = "begins"
    turn: int = 0
    dying: bool = False
    dead: bool = False
    paused_until: float = 0.0
    holds: dict[str, object] = field(default_factory=dict)
    """What the judge remembers of it."""

    def __str__(self) -> str:
        return f"{self.name}.{self.number}"


class Stop(Event):
    """A process's stop signal, which waits in simulated time."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self._world = world

    def wait(self, timeout: float | None = None) -> bool:
        """See Event."""
        return self._world.until("waits", self.is_set, 60.0 if timeout is None else timeout)


class World:
    """Who runs when. `rates` says how likely each kind of trouble is, at each chance for it."""

    def __init__(self, seed: int, *, tells: Callable[[str], object] | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = 0.0
        self.steps = 0
        self.rates: dict[str, float] = {}
        self.reached: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.running: Process | None = None
        self._numbers: dict[str, int] = {}
        self.processes: list[Process] = []
        self.on_death: Callable[[Process], None] = lambda _: None
        self.clock = Clock(lambda: self.now, self.sleep, self.utc, self.random.uniform)
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._number = 0
        self._hub = getcurrent()
        self._hash = blake2b(digest_size=8)
        self._tells = tells

    @property
    def trace_hash(self) -> str:
        """A digest of every step so far."""
        return self._hash.hexdigest()

    def utc(self) -> datetime:
        """Returns the simulated time."""
        return EPOCH + timedelta(seconds=self.now)

    def note(self, text: str) -> None:
        """Put a line into the trace."""
        self._hash.update(text.encode())
        if self._tells:
            who = str(self.running or "servers")
            self._tells(f"{self.now:9.4f}  {who:<14} {text}")

    def reach(self, state: str) -> None:
        """Count a rare state, one of `RARE`."""
        self.reached[state] += 1

    def blame(self, what: str) -> None:
        """A promise is broken; the run ends."""
        self.note(f"WRONG: {what}")
        self.wrong.append(what)

    def chance(self, trouble: str, times: int = 1) -> bool:
        """Whether this trouble happens now; `times` as likely as usual."""
        rate = self.rates.get(trouble)
        if not rate or self.random.random() >= rate * times:
            return False
        self.note(f"trouble: {trouble}")
        return True

    def latency(self) -> float:
        """Seconds that one step takes; some take long."""
        draw = self.random.random()
        return 0.001 + 0.008 * draw if draw < 0.97 else 0.05 + self.random.random() * 0.25

    def later(self, delay: float, act: Callable[[], object]) -> None:
        """Have the servers do something after so many seconds."""
        self._number += 1
        heapq.heappush(self._due, (self.now + delay, self._number, act))

    # ── processes ─────────────────────────────────────────────────────────────────────────

    def begin(self, name: str, program: Callable[[Process], object]) -> None:
        """Start the next process of this name, which runs `program`."""
        number = self._numbers[name] = self._numbers.get(name, 0) + 1
        process = Process(name, number, lambda: program(process), Stop(self))
        self.start(process)

    def start(self, process: Process) -> None:
        """Let it begin soon."""
        process.greenlet = greenlet(lambda: self._live(process), self._hub)
        self.processes.append(process)
        self._resume_later(process, self.latency())

    def point(self, label: str, delay: float | None = None) -> None:
        """Let others go on: the process is here, and may be killed here."""
        process = self.running
        if process is None:
            return
        if process.dying:
            raise Crash
        process.at = label
        where = f"{process.name[:-2]} at {label}"
        if self.chance("crash", 8 if where in DEATHS else 1):
            self._die(process)
            raise Crash
        self._resume_later(process, self.latency() if delay is None else delay)
        self._hub.switch()
        if process.dying:
            raise Crash

    def until(self, label: str, condition: Callable[[], object], timeout: float) -> bool:
        """Wait until something is so, or for `timeout` seconds; whether it is."""
        process = self.running
        if process is None or condition():
            return bool(condition())
        if process.dying:
            raise Crash
        process.at = label
        process.turn += 1
        self._look_later(process, process.turn, condition, POLL, self.now + timeout)
        self._hub.switch()
        if process.dying:
            raise Crash
        return bool(condition())

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.point("sleeps", max(seconds, 0.0001))

    def kill(self, process: Process) -> None:
        """End it where it is, as SIGKILL does."""
        if process.dead or process is self.running:
            return
        self._die(process)
        process.turn += 1
        self._switch_to(process)

    def pause(self, process: Process, seconds: float) -> None:
        """Stop it for a while, as SIGSTOP does: its connections stay."""
        self.note(f"{process} is paused at {process.at} for {seconds:.2f} s")
        process.paused_until = self.now + seconds

    def named(self, who: str) -> Process | None:
        """A process by its name and number, if it lives."""
        return next((p for p in self.processes if str(p) == who), None)

    def run(self, done: Callable[[], bool], limit: float) -> bool:
        """Go on until `done`, looked at now and then; False: time or steps ran out first."""
        end, look_at = self.now + limit, self.now
        while not self.wrong:
            if self.now >= look_at:
                if done():
                    return True
                look_at = self.now + 0.05
            if not self._due or self.now > end:
                return done()
            due, _, act = heapq.heappop(self._due)
            self.now = max(self.now, due)
            self.steps += 1
            act()
        return False

    def end(self) -> None:
        """Throw everything away."""
        self.on_death = lambda _: None
        self.rates = {}
        for process in list(self.processes):
            process.dying = True
            self._switch_to(process)
        self._due.clear()

    def _live(self, process: Process) -> None:
        try:
            if process.dying:
                raise Crash
            process.main()
            self.note(f"{process} has ended")
        except Crash:
            self.note(f"{process} is dead, killed at {process.at}")
        except Exception as error:  # noqa: BLE001 - no exception may end a process of ours
            self.blame(f"{process} ended with {type(error).__name__}: {error}")
        process.dead = True
        self.processes.remove(process)
        self.on_death(process)

    def _die(self, process: Process) -> None:
        where = f"{process.name[:-2]} at {process.at}"
        if where in DEATHS:
            self.reach(DEATHS[where])
        process.dying = True

    def _resume_later(self, process: Process, delay: float) -> None:
        process.turn += 1
        turn = process.turn
        self.later(delay, lambda: self._resume(process, turn))

    def _resume(self, process: Process, turn: int) -> None:
        if process.dead or process.turn != turn:
            return
        if self.now < process.paused_until:
            self.later(process.paused_until - self.now, lambda: self._resume(process, turn))
            return
        self._switch_to(process)

    def _look_later(
        self,
        process: Process,
        turn: int,
        condition: Callable[[], object],
        wait: float,
        deadline: float,
    ) -> None:
        def look() -> None:
            if process.dead or process.turn != turn:
                return
            if self.now >= process.paused_until and (condition() or self.now >= deadline):
                self._switch_to(process)
            else:
                self._look_later(process, turn, condition, min(wait * 2, 0.1), deadline)

        left = max(deadline - self.now, process.paused_until - self.now, 0.0001)
        self.later(min(wait, left) * (0.75 + self.random.random() / 2), look)

    def _switch_to(self, process: Process) -> None:
        self._hash.update(f"{process}{process.at}{self.now:.6f}".encode())
        self.running = process
        assert process.greenlet is not None
        process.greenlet.switch()
        self.running = None


class Condition:
    """A threading.Condition whose waiting takes simulated time."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __enter__(self) -> "Condition":
        return self

    def __exit__(self, *_: object) -> None: ...

    def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> bool:
        """See threading.Condition."""
        return self._world.until("waits for rabbit", condition, timeout or 0.0)

    def notify_all(self) -> None:
        """Who waits looks for itself."""


class Lock:
    """A threading.Lock between processes' calls."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._held = False

    def __enter__(self) -> None:
        while self._held:
            self._world.until("waits for a lock", lambda: not self._held, 1.0)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
