"""A steady mixed load from several clients, who keep a journal, and a probe for recovery."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

import urllib3

from eventcore import jsontext
from tests.chaos.journal import Entry, Journal, Try

Item = TypeVar("Item")

PATIENCE = 15.0
"""Seconds that a client waits for an answer; the gateway's own limit is 10."""

DUPLICATES = 0.02
"""Share of the keys that are sent again after a good answer."""

MIX = {
    "create user": 18, "rename": 20, "place": 25, "cancel": 8,
    "read user": 13, "read order": 13, "list": 3,
}  # fmt: skip
"""Weights of what is asked."""

BLOCK = 100
"""Users and orders among which a stream is chosen, by Zipf's law, until so many more are there."""


class Known:
    """The ids that the clients have been given, and which of them to ask about next."""

    def __init__(self) -> None:
        self._users: list[str] = []
        self._orders: list[tuple[str, str]] = []
        self._uncancelled: list[str] = []
        self._lock = threading.Lock()

    def add_user(self, user: str) -> None:
        with self._lock:
            self._users.append(user)

    def add_order(self, order: str, item: str) -> None:
        with self._lock:
            self._orders.append((order, item))
            self._uncancelled.append(order)

    def forget(self, users: set[str]) -> None:
        """Ask no more about these."""
        with self._lock:
            self._users = [user for user in self._users if user not in users]

    def user(self, chance: random.Random) -> str | None:
        with self._lock:
            return _zipf(self._users, chance)

    def order(self, chance: random.Random) -> tuple[str, str] | None:
        with self._lock:
            return _zipf(self._orders, chance)

    def to_cancel(self) -> str | None:
        """An order that nobody has cancelled yet, and nobody else will."""
        with self._lock:
            return self._uncancelled.pop(0) if len(self._uncancelled) > 5 else None


def _zipf(known: list[Item], chance: random.Random) -> Item | None:
    """One of the latest full block, the first of it most often; log-uniform ranks are Zipf's."""
    begin = max(0, len(known) // BLOCK - 1) * BLOCK
    block = known[begin : begin + BLOCK]
    return block[int(len(block) ** chance.random()) - 1] if block else None


class Caller:
    """Sends requests, and keeps the journal of them."""

    def __init__(self, url: str, journal: Journal, known: Known, chance: random.Random) -> None:
        self._url = url
        self._journal = journal
        self._known = known
        self._chance = chance
        self._http = urllib3.PoolManager(timeout=PATIENCE, retries=False, maxsize=1)

    def ask(self, kind: str, tries: int = 1) -> Entry | None:
        """One request of a kind, asked again with its key while its answer is not known."""
        number = UUID(int=self._chance.getrandbits(128), version=4).hex
        match kind:
            case "create user":
                return self._create(number, tries)
            case "rename":
                return self._rename(number, tries)
            case "place":
                return self._place(number, tries)
            case "cancel":
                return self._cancel(number, tries)
            case "read user":
                user = self._known.user(self._chance)
                return self._read(number, kind, user, f"/users/{user}", {}) if user else None
            case "list":
                user = self._known.user(self._chance)
                path = f"/queries/orders?userId={user}"
                return self._read(number, kind, user, path, {}) if user else None
        found = self._known.order(self._chance)
        if not found:
            return None
        return self._read(number, kind, found[0], f"/queries/orders/{found[0]}", {"item": found[1]})

    def close(self) -> None:
        self._http.clear()

    def _create(self, number: str, tries: int) -> Entry:
        body = {"name": f"Name {number}", "email": f"{number}@example.com"}
        entry = Entry(number, "create user", "", body, 1)
        if answer := self._command(entry, "POST", "/users", body, tries):
            entry.subject = answer["userId"]
            self._known.add_user(entry.subject)
        return entry

    def _rename(self, number: str, tries: int, user: str | None = None) -> Entry | None:
        user = user or self._known.user(self._chance)
        if user is None:
            return None
        body = {"name": f"Name {number}"}
        if self._chance.random() < 0.3:
            body["email"] = f"{number}@example.com"
        entry = Entry(number, "rename", user, body, len(body))
        self._command(entry, "PUT", f"/users/{user}", body, tries)
        return entry

    def _place(self, number: str, tries: int, user: str | None = None) -> Entry | None:
        user = user or self._known.user(self._chance)
        if user is None:
            return None
        says = {"userId": user, "item": f"Item {number}", "price": f"{int(number[:4], 16) / 100}"}
        body = {**says, "price": float(says["price"])}
        entry = Entry(number, "place", "", says, 1)
        if answer := self._command(entry, "POST", "/orders", body, tries):
            entry.subject = answer["orderId"]
            self._known.add_order(entry.subject, says["item"])
        return entry

    def _cancel(self, number: str, tries: int) -> Entry | None:
        order = self._known.to_cancel()
        if order is None:
            return None
        body = {"reason": f"Reason {number}"}
        entry = Entry(number, "cancel", order, body, 1)
        self._command(entry, "POST", f"/orders/{order}/cancel", body, tries)
        return entry

    def _command(
        self, entry: Entry, method: str, path: str, body: object, tries: int
    ) -> dict[str, Any]:
        """The answer's JSON if it is a good one."""
        self._journal.begin(entry)
        answer: dict[str, Any] = {}
        for again in range(tries):
            if again:
                time.sleep(self._chance.uniform(0.1, 0.4))  # a client's backoff
            answer = self._send(entry, method, path, body)
            if entry.outcome != "unknown":
                break
        if answer and self._chance.random() < DUPLICATES:
            repeated = Entry(entry.id, entry.kind, entry.subject, {}, entry.events)
            again_answer = self._send(repeated, method, path, body, journal=False)
            if repeated.outcome == "ok":
                same = again_answer == answer
                entry.replays.append("same" if same else f"{again_answer} is not {answer}")
        return answer

    def _read(self, number: str, kind: str, about: str, path: str, says: dict[str, str]) -> Entry:
        entry = self._journal.begin(Entry(number, kind, about, says, 0))
        self._send(entry, "GET", path, None)
        return entry

    def _send(
        self, entry: Entry, method: str, path: str, body: object, journal: bool = True
    ) -> dict[str, Any]:
        headers = {"X-Request-ID": entry.id}
        if body is not None:
            headers["Idempotency-Key"] = entry.id
        began = time.monotonic()
        status, data, retry_after = 0, b"", False
        try:
            answer = self._http.request(method, self._url + path, json=body, headers=headers)
            status, data = answer.status, answer.data
            retry_after = "Retry-After" in answer.headers
        except urllib3.exceptions.HTTPError:
            self._http.clear()  # no answer; the entry says so
        tried = Try(began, time.monotonic() - began, status, retry_after)
        if journal:
            self._journal.answer(entry, tried)
        else:
            entry.tries.append(tried)
        content: dict[str, Any] = jsontext.parse(data) if 200 <= status < 300 else {}
        return content


class Client(threading.Thread):
    """One caller at its own pace, who stops for a while when told so."""

    def __init__(self, caller: Caller, pace: float, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self.pace = pace
        """Seconds from one request to the next, on average."""
        self._caller = caller
        self._chance = chance
        self._enough = threading.Event()
        self._may_go = threading.Event()
        self._rests = threading.Event()

    def go(self) -> None:
        """Begin, or go on."""
        self._rests.clear()
        self._may_go.set()

    def rest(self) -> None:
        """Stop after the request in progress."""
        self._may_go.clear()

    def await_rest(self) -> None:
        """Return when nothing of it is in progress."""
        assert self._rests.wait(5 * PATIENCE), "a client waits for an answer for ever"

    def end(self) -> None:
        """Stop for good."""
        self._enough.set()
        self._may_go.set()
        self.join(5 * PATIENCE)
        self._caller.close()

    def run(self) -> None:
        kinds, weights = list(MIX), list(MIX.values())
        while not self._enough.is_set():
            if not self._may_go.is_set():
                self._rests.set()
                self._may_go.wait()
                continue
            began = time.monotonic()
            tries = 4 if self._chance.random() < 0.5 else 1
            self._caller.ask(self._chance.choices(kinds, weights)[0], tries)
            pause = self.pace * self._chance.uniform(0.5, 1.5) - (time.monotonic() - began)
            self._enough.wait(max(0.0, pause))


class Load:
    """All clients, with one journal."""

    def __init__(self, url: str, journal: Journal, rate: float, clients: int, seed: str) -> None:
        self.journal = journal
        self.known = Known()
        self._url = url
        self._seed = seed
        self._clients = []
        for number in range(clients):
            chance = random.Random(f"{seed}/client/{number}")
            caller = Caller(url, journal, self.known, chance)
            self._clients.append(Client(caller, clients / rate, chance))

    def caller(self, name: str) -> Caller:
        """One more caller, for questions in between."""
        return Caller(self._url, self.journal, self.known, random.Random(f"{self._seed}/{name}"))

    def go(self) -> None:
        for client in self._clients:
            client.go()

    def ask_for(self, rate: float) -> None:
        """So many requests a second from now on; inf: as many as are answered."""
        for client in self._clients:
            client.pace = len(self._clients) / rate

    def rest(self) -> None:
        """Let all come to rest, and return when no request is in progress."""
        for client in self._clients:
            client.rest()
        for client in self._clients:
            client.await_rest()

    @contextmanager
    def running(self) -> Iterator["Load"]:
        for client in self._clients:
            client.start()
        self.go()
        try:
            yield self
        finally:
            for client in self._clients:
                client.rest()
            for client in self._clients:
                client.end()
