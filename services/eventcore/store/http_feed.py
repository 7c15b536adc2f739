"""The feed of another service, over HTTP: the only client of `/internal`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError

from eventcore import jsontext
from eventcore.errors import FeedUnavailable, NotAnEvent
from eventcore.model.event import Event, Mark, from_message
from eventcore.retry import CircuitBreaker
from eventcore.settings import Secret
from eventcore.store.feed import ANNOUNCEMENT, HeadsPage
from eventcore.store.port import PAGE, Progress


class HttpFeed:
    """A Feed from the owner at `url`, behind a circuit breaker, by its token, read at each call.

    A call takes `timeout` seconds at most. It carries `announcement`: the event versions that the
    caller can take. It asks for the streams of `aggregate_type`; "" is the owner's own type, which
    an owner of an older version serves too.
    """

    def __init__(
        self,
        url: str,
        token: Secret,
        timeout: float = 5.0,
        announcement: str = "",
        aggregate_type: str = "",
    ) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._announced = {ANNOUNCEMENT: announcement} if announcement else {}
        self._asked = {"type": aggregate_type} if aggregate_type else {}
        self._circuit = CircuitBreaker()
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(total=timeout), retries=False, maxsize=4
        )

    def stream(self, aggregate_id: str, after: int) -> list[Event]:
        events: list[Event] = []
        while page := self._events("events", stream=aggregate_id, after=after):
            events += page
            after = page[-1].version
            if len(page) < PAGE:
                break
        return events

    def streams(self, after: Mapping[str, int]) -> dict[str, list[Event]]:
        versions = ",".join(map(str, after.values()))
        page = self._ask("streams", ids=",".join(after), after=versions)["streams"]
        if not page:
            raise FeedUnavailable(f"{self._url} answers none of the streams it was asked for")
        return {each: self._read(messages) for each, messages in page.items()}

    def heads(self, after: int, until: int, marks: Sequence[Mark] = ()) -> HeadsPage:
        known = ",".join(f"{mark.position}:{mark.event_id}" for mark in marks if mark.event_id)
        page = self._ask("heads", after=after, until=until, marks=known)
        at = page.get("at")
        return HeadsPage(
            {each["id"]: each["version"] for each in page["heads"]},
            Mark(page["until"], page.get("eventId", "")),
            Mark(page["settled"], page.get("settledEventId", "")),
            page.get("head", 0),
            page.get("epoch", ""),
            datetime.fromisoformat(at) if at else None,
            page.get("same", True),
        )

    def between(self, after: int, until: int) -> list[Event]:
        return self._events("feed", after=after, until=until)

    def progress(self) -> Progress:
        log = self._ask("log")
        return Progress(
            log["head"],
            log["settled"],
            log["relayed"],
            log["epoch"],
            log.get("eventId", ""),
            log.get("relayHalted", ""),
        )

    def aggregate_type(self) -> str:
        """The aggregate type of the streams that it asks for. Raises FeedUnavailable."""
        return str(self._ask("log")["aggregateType"])

    def _events(self, what: str, **query: str | int) -> list[Event]:
        return self._read(self._ask(what, **query)["events"])

    def _read(self, messages: Sequence[Any]) -> list[Event]:
        try:
            return [from_message(message) for message in messages]
        except NotAnEvent as error:
            raise FeedUnavailable(f"{self._url} returned an invalid event: {error}") from error

    def _ask(self, what: str, **query: str | int) -> Any:
        return self._get(what, **self._asked, **query)

    def _get(self, what: str, **query: str | int) -> Any:
        url = f"{self._url}/internal/{what}"
        fields = {name: str(value) for name, value in query.items()}
        with self._circuit.call():
            headers = {"Authorization": f"Bearer {self._token.read()}", **self._announced}
            try:
                response = self._pool.request("GET", url, fields=fields, headers=headers)
                if response.status != 200:
                    raise FeedUnavailable(
                        f"{url} answered {response.status}: {response.data[:200]!r}"
                    )
                return jsontext.parse(response.data)
            except (HTTPError, ValueError) as error:
                raise FeedUnavailable(f"{url} cannot be read: {error}") from error
