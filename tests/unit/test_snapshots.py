"""Snapshots: used where they fit, ignored and counted where anything about them does not."""

import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from eventcore import snapshots
from eventcore.command import Call, append_of, handle
from eventcore.errors import Misconfigured, StoreUnavailable
from eventcore.model.catalogue import Catalogue
from eventcore.model.decider import Decider, StreamState
from eventcore.model.event import Event, Json
from eventcore.operate.verifying_snapshots import Compared, compare_snapshots
from eventcore.snapshots import WRITER, Writer, digest_of, to_snapshot
from eventcore.state import read_state
from eventcore.store.port import PAGE, Answer, Snapshot, Store, Stream
from tests.fakes.store import FakeStore

EVERY = 10


@dataclass(frozen=True)
class Deposited:
    """Money came."""

    amount: int


@dataclass(frozen=True)
class Account:
    """How much there is, and how often it came."""

    balance: int
    deposits: int


def decide(amount: int, _: Account) -> Sequence[Deposited]:
    return [Deposited(amount)] if amount else []


def evolve(account: Account, event: Deposited) -> Account:
    return Account(account.balance + event.amount, account.deposits + 1)


def to_json(account: Account) -> Json:
    return {"balance": account.balance, "deposits": account.deposits}


def from_json(value: Any) -> Account:
    return Account(value["balance"], value["deposits"])


Accounts: TypeAlias = Decider[int, Account, Deposited]
PLAIN: Accounts = Decider(Catalogue("account", Deposited), Account(0, 0), decide, evolve)
DECIDER = replace(PLAIN, snapshot_every=EVERY, state_to_json=to_json, state_from_json=from_json)


class CountingStore(FakeStore):
    """Counts the events that are read of streams."""

    read = 0

    def read_stream(self, stream: Stream, after: int = 0, limit: int = PAGE) -> list[Event]:
        """See Store."""
        page = super().read_stream(stream, after, limit)
        self.read += len(page)
        return page


def filled(count: int) -> tuple[CountingStore, UUID]:
    """A store with an account of so many events, 1 + 2 + 3 ..."""
    store, account = CountingStore(), uuid4()
    store.log += [
        Event(n, uuid4(), "account", account, n, "DEPOSITED", 1, {"amount": n}, {}, store.now)
        for n in range(1, count + 1)
    ]
    return store, account


def deposit(store: Store, account: UUID, amount: int, decider: Accounts = DECIDER) -> Any:
    """The body of the answer: balance, deposits, version."""

    def answer(state: Account, version: int) -> Answer:
        return Answer(200, {"state": astuple(state), "version": version}, {})

    done = handle(store, decider, account, amount, Call({}), answer)
    WRITER.flush()
    return done.body


def reads(outcome: str) -> float:
    labels = {"aggregate_type": "account", "outcome": outcome}
    return REGISTRY.get_sample_value("eventstore_snapshot_reads_total", labels) or 0.0


def writes(outcome: str) -> float:
    labels = {"aggregate_type": "account", "outcome": outcome}
    return REGISTRY.get_sample_value("eventstore_snapshot_writes_total", labels) or 0.0


def test_a_command_on_ten_thousand_events_reads_as_few_as_one_on_ten() -> None:
    for count in (10, 10_000):
        store, account = filled(count)
        deposit(store, account, 1)
        store.read, total = 0, count * (count + 1) // 2
        assert deposit(store, account, 2) == {
            "state": (total + 3, count + 2), "version": count + 2,
        }  # fmt: skip
        assert store.read <= EVERY + 1


def test_a_snapshot_is_written_after_every_so_many_events() -> None:
    store, account = filled(1)
    stream, versions, written = Stream("account", account), list[int](), writes("written")
    for _ in range(3 * EVERY):
        deposit(store, account, 1)
        if (found := store.read_snapshot(stream)) and found.version not in versions:
            versions.append(found.version)
    assert versions == [EVERY, 2 * EVERY, 3 * EVERY]
    assert writes("written") == written + 3


def test_without_the_setting_nothing_is_written_and_nothing_looked_for() -> None:
    store, account = filled(3 * EVERY)
    before = reads("none"), writes("written")
    deposit(store, account, 1, PLAIN)
    assert store.snapshots == {}
    assert (reads("none"), writes("written")) == before


def test_an_append_for_another_command_takes_and_offers_snapshots_too() -> None:
    store, account = filled(2 * EVERY)
    append_of(store, DECIDER, account, 1)
    WRITER.flush()
    store.read = 0
    [append] = append_of(store, DECIDER, account, 1)
    assert (append.expected_version, store.read) == (2 * EVERY, 1)


# ── what is ignored ───────────────────────────────────────────────────────────────────────


def with_snapshot(count: int = 3 * EVERY) -> tuple[CountingStore, UUID, Snapshot]:
    store, account = filled(count)
    deposit(store, account, 0)
    snapshot = store.read_snapshot(Stream("account", account))
    assert snapshot
    return store, account, snapshot


@given(
    st.sampled_from(("version", "event_id", "digest", "checksum", "state")),
    st.integers(0, 1000),
    st.integers(1, 127),
)
def test_a_snapshot_with_any_byte_changed_changes_no_answer(
    name: str, place: int, change: int
) -> None:
    store, account, snapshot = with_snapshot()
    value = str(getattr(snapshot, name))
    at = place % len(value)
    damaged: Any = value[:at] + chr(ord(value[at]) ^ change) + value[at + 1 :]
    if name == "version":
        damaged = int(value) ^ change
    store.snapshots[Stream("account", account)] = replace(snapshot, **{name: damaged})
    before = reads("damaged")
    total = 3 * EVERY * (3 * EVERY + 1) // 2
    assert deposit(store, account, 5) == {
        "state": (total + 5, 3 * EVERY + 1), "version": 3 * EVERY + 1,
    }  # fmt: skip
    assert reads("damaged") == before + 1


def test_a_snapshot_of_another_stream_is_damage() -> None:
    store, account, snapshot = with_snapshot()
    _, other, _ = with_snapshot()
    for event in list(store.log):
        store.log.append(replace(event, aggregate_id=other, position=event.position + 100))
    store.snapshots[Stream("account", other)] = snapshot
    before = reads("damaged")
    assert read_state(store, DECIDER, Stream("account", other)).state.deposits == 3 * EVERY
    assert reads("damaged") == before + 1
    assert account != other


def ignored(store: FakeStore, account: UUID, outcome: str, decider: Accounts = DECIDER) -> Account:
    """The state, after a look at a snapshot that is ignored for a reason."""
    before, used = reads(outcome), reads("used")
    found = read_state(store, decider, Stream("account", account))
    assert (reads(outcome), reads("used")) == (before + 1, used)
    assert found == replace(read_state(store, PLAIN, Stream("account", account)))
    return found.state


def test_a_snapshot_above_the_head_is_ignored() -> None:
    store, account, _ = with_snapshot()
    del store.log[-1]
    assert ignored(store, account, "other_event").deposits == 3 * EVERY - 1


def test_a_snapshot_on_an_event_that_the_log_does_not_have_is_ignored() -> None:
    store, account, _ = with_snapshot()
    store.log[-1] = replace(store.log[-1], event_id=uuid4(), data={"amount": 1000})
    assert ignored(store, account, "other_event").balance > 1000


def other_evolve(account: Account, event: Deposited) -> Account:
    return Account(account.balance + 2 * event.amount, account.deposits + 1)


def test_a_snapshot_of_other_code_is_ignored_and_replaced() -> None:
    store, account, snapshot = with_snapshot()
    before = reads("other_code")
    other = replace(DECIDER, evolve=other_evolve)
    total = 3 * EVERY * (3 * EVERY + 1)
    assert deposit(store, account, 0, other)["state"] == (total, 3 * EVERY)
    assert reads("other_code") == before + 1
    assert store.read_snapshot(Stream("account", account)) != snapshot
    used = reads("used")
    assert deposit(store, account, 0, other)["state"] == (total, 3 * EVERY)
    assert reads("used") == used + 1


def failing_from_json(value: Any) -> Account:
    raise KeyError(value)


def test_a_snapshot_that_its_decider_cannot_read_is_ignored() -> None:
    store, account, snapshot = with_snapshot()
    failing = replace(DECIDER, state_from_json=failing_from_json)
    stream = Stream("account", account)
    sound = replace(snapshot, digest=digest_of(failing))
    store.snapshots[stream] = replace(sound, checksum=snapshots.checksum_of(stream, sound))
    assert ignored(store, account, "unreadable", failing).deposits == 3 * EVERY


# ── writing ───────────────────────────────────────────────────────────────────────────────


def test_a_failed_write_is_counted_and_the_command_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, account = filled(3 * EVERY)

    def fail(*_: object) -> None:
        raise StoreUnavailable("a test said so")

    monkeypatch.setattr(store, "write_snapshot", fail)
    monkeypatch.setattr("eventcore.observe.background.PAUSE", 0.0)
    before = writes("failed")
    assert deposit(store, account, 1)["version"] == 3 * EVERY + 1
    assert writes("failed") == before + 1
    assert store.snapshots == {}


def test_a_full_queue_drops_and_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    store, account = filled(EVERY)
    writer, stream = Writer(waiting=1), Stream("account", account)
    begun, go_on = threading.Event(), threading.Event()
    write = store.write_snapshot

    def wait(*given: Any) -> None:
        begun.set()
        assert go_on.wait(30)
        write(*given)

    monkeypatch.setattr(store, "write_snapshot", wait)
    found, before = read_state(store, DECIDER, stream), writes("dropped")
    writer.offer(store, DECIDER, stream, found)
    assert begun.wait(30)
    for _ in range(3):
        writer.offer(store, DECIDER, stream, found)
    assert writes("dropped") == before + 2
    go_on.set()
    writer.flush()
    assert store.read_snapshot(stream)


def forgetful_from_json(value: Any) -> Account:
    return Account(value["balance"], 0)


def test_a_state_that_does_not_come_back_from_its_json_is_not_written() -> None:
    store, account = filled(EVERY)
    stream = Stream("account", account)
    forgetful = replace(DECIDER, state_from_json=forgetful_from_json)
    with pytest.raises(Misconfigured, match="does not come back"):
        to_snapshot(forgetful, stream, read_state(store, forgetful, stream))


def test_a_setting_without_functions_is_refused() -> None:
    with pytest.raises(Misconfigured, match="state_to_json"):
        replace(PLAIN, snapshot_every=EVERY)


# ── the code that folds ───────────────────────────────────────────────────────────────────


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of a decider whose `evolve` uses a module of the same package."""
    folder = tmp_path / "folding"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "rules.py").write_text("FACTOR = 2\n")
    (folder / "unused.py").write_text("")
    (folder / "account.py").write_text(
        "from folding import rules\n\n\n"
        "def evolve(account, event):\n    return account + event.amount * rules.FACTOR\n\n\n"
        "def to_json(account):\n    return account\n\n\nfrom_json = to_json\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [each for each in sys.modules if each.partition(".")[0] == "folding"]:
        del sys.modules[name]


def digest_now() -> str:
    snapshots._digest.cache_clear()
    account = importlib.import_module("folding.account")
    return digest_of(
        replace(
            DECIDER, evolve=account.evolve, state_to_json=account.to_json,
            state_from_json=account.from_json,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "changes"), [("account", True), ("rules", True), ("unused", False)]
)
def test_the_digest_is_of_the_decider_and_of_all_modules_that_it_imports(
    package: Path, module: str, changes: bool
) -> None:
    before = digest_now()
    importlib.import_module("folding.unused")
    assert digest_now() == before
    with (package / f"{module}.py").open("a") as file:
        file.write("\n# changed\n")
    assert (digest_now() != before) is changes


def test_a_function_that_no_module_defines_is_refused() -> None:
    class Callable_:
        def __call__(self, account: Account, _: Deposited) -> Account:
            return account

    with pytest.raises(Misconfigured, match="functions of a module"):
        digest_of(replace(DECIDER, evolve=Callable_()))


# ── verify ────────────────────────────────────────────────────────────────────────────────


def test_verify_compares_each_snapshot_with_the_fold_of_all_events() -> None:
    store, account, snapshot = with_snapshot()
    stream = Stream("account", account)
    assert compare_snapshots(store, DECIDER) == Compared(1, 0, {})
    other = replace(DECIDER, evolve=other_evolve)
    assert compare_snapshots(store, other) == Compared(1, 1, {})
    forged = to_snapshot(
        DECIDER, stream, StreamState(Account(1, 1), snapshot.version, 0, UUID(snapshot.event_id))
    )

    def found(wrong: Snapshot) -> str:
        store.snapshots[stream] = wrong
        compared = compare_snapshots(store, DECIDER)
        assert (compared.checked, list(compared.wrong)) == (1, [stream])
        return compared.wrong[stream]

    assert "differs from the fold" in found(forged)
    assert found(replace(snapshot, state="{}")) == "damaged"
    del store.log[-1]
    assert "other_event" in found(snapshot)
