"""P23: a sweep beside many parked streams."""

import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter
from uuid import uuid4

from eventcore.project.applier import EventApplier
from eventcore.project.sweep import Sweep
from eventcore.readmodel.mongo import Mongo
from eventcore.store.feed import StoreFeed
from eventcore.store.postgres import Postgres
from order.projections import orders
from tests.bench.bed import ORDER, Bed, Size, metadata
from tests.bench.rows import Row, Values, require

_APPEND = """
select append_events('order', uuidv7(), 0, array[uuidv7()], array[%s], array[1], array[%s], %s)
  from generate_series(1, %s)
"""

SWEEPS = 20
"""Sweeps that are measured, each with a new stream to bring."""


class Parking:
    """Measures on a store whose streams have an event that no code knows."""

    def __init__(self, bed: Bed, size: Size) -> None:
        self._bed = bed
        self._count = size.parked

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        units = (" s until all are parked", " ms a sweep", " ms a sweep that brings a new stream")
        return (Row("P23", f"{self._count:,} parked streams", self._sweep, units),)

    def _sweep(self) -> Values:
        """Seconds to park all, then milliseconds of an idle sweep and of one that catches up."""
        name = f"parkbench_{uuid4().hex[:8]}"
        self._append(name, "ORDER_UNHEARD_OF", self._count)
        readmodel = Mongo(self._bed.readmodel("bench"))
        projection = replace(orders.PROJECTION, name=name, collection=name)
        feed = StoreFeed(Postgres(self._bed.store(name, "service"), 2), "order")
        applier = EventApplier(projection, readmodel, feed)
        sweep = Sweep(applier, "bench", 60)
        began = perf_counter()
        while sweep.run() or readmodel.count_parked(applier.generation.name) < self._count:
            pass
        parked_in = perf_counter() - began
        idle = [_milliseconds(sweep) for _ in range(SWEEPS)]
        busy = []
        for _ in range(SWEEPS):
            self._append(name, "ORDER_PLACED", 1)
            sweep.run()  # a sweep looks only at what had settled when the last one looked
            busy.append(_milliseconds(sweep))
        there = self._bed.bare_collection(applier.generation.collection).count_documents({})
        require(there == SWEEPS, f"{there} new streams are readable, not {SWEEPS}")
        readmodel.close()
        return parked_in, median(idle), median(busy)

    def _append(self, store: str, event_type: str, count: int) -> None:
        with self._bed.sql(self._bed.store(store, "owner")) as cursor:
            cursor.execute(_APPEND, (event_type, json.dumps(ORDER), json.dumps(metadata()), count))


def _milliseconds(sweep: Sweep) -> float:
    began = perf_counter()
    sweep.run()
    return (perf_counter() - began) * 1e3
