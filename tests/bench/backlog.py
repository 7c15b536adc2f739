"""A log with so many orders in it, which a relay or a projector has not seen yet."""

import json
from functools import cached_property

from eventcore.model.event import Event
from eventcore.relay import to_broker
from eventcore.settings import Server
from eventcore.store.postgres import Postgres
from tests.bench.bed import ORDER, Bed, metadata

_APPEND = """
select append_events('order', uuidv7(), 0, array[uuidv7()], array['ORDER_PLACED'], array[1],
                     array[%s], %s)
  from generate_series(1, %s)
"""

_CANCEL = """
select append_events('order', aggregate_id, 1, array[uuidv7()], array['ORDER_CANCELLED'], array[1],
                     array['{"reason": "changed my mind"}'], %s)
  from (select aggregate_id from events where event_type = 'ORDER_PLACED'
         order by position desc limit %s) as newest
"""

CHUNK = 1000
"""Events that are appended in one transaction."""


class Backlog:
    """An event store of its own with `count` orders; if it `cancels`, each second is cancelled."""

    def __init__(self, bed: Bed, name: str, count: int, cancels: bool = False) -> None:
        self.name = name
        self.count = count
        self.cancelled = 0
        self._bed = bed
        with bed.sql(bed.store(name, "owner")) as cursor:
            for start in range(0, count, CHUNK):
                some = min(CHUNK, count - start)
                cursor.execute(_APPEND, (json.dumps(ORDER), json.dumps(metadata()), some))
                if cancels:
                    cursor.execute(_CANCEL, (json.dumps(metadata()), some // 2))
                    self.cancelled += some // 2

    @cached_property
    def store(self) -> Postgres:
        """The store, as the service has it."""
        return Postgres(self.login, 2)

    @property
    def login(self) -> Server:
        """The service's login of it."""
        return self._bed.store(self.name, "service")

    @cached_property
    def events(self) -> list[Event]:
        """All of them."""
        found: list[Event] = []
        while page := self.store.read_feed(found[-1].position if found else 0, 2**62, 5000):
            found += page
        return found

    @cached_property
    def bodies(self) -> list[bytes]:
        """The messages that carry them."""
        return [to_broker(event).body for event in self.events]

    def forget_checkpoint(self) -> None:
        """Lets the relay begin at position 0."""
        with self._bed.sql(self._bed.store(self.name, "owner")) as cursor:
            cursor.execute("delete from checkpoints")
