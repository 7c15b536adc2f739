"""The process of a reactor: a projector that needs its own service's store as well."""

from collections.abc import Callable
from dataclasses import dataclass

from eventcore.errors import Overloaded, StoreUnavailable, Unavailable
from eventcore.observe import metrics
from eventcore.project.projector import Projector
from eventcore.project.reacting import ReactingApplier, fire_deadlines


@dataclass(eq=False)
class ReactorProjector(Projector):
    """Consumes one queue, reacts, and fires the deadlines of its service.

    While the store is unavailable it does as projectors do without their read model: it pauses its
    consumer, tries again with backoff, and /readyz names the store.
    """

    applier: ReactingApplier
    check_store: Callable[[], object] = lambda: None
    """Raises Unavailable while the store, or its schema, does not do."""

    waits_for = (*Projector.waits_for, StoreUnavailable, Overloaded)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fire_at = 0.0
        reactor = self.applier.projection
        for outcome in ("done", "delayed", "failed"):
            metrics.REACTIONS.labels(reactor.name, outcome)  # creates it at 0, see ProjectorLoop
        for outcome in ("fired", "failed") if reactor.deadlines else ():
            metrics.DEADLINES.labels(reactor.deadline_type, outcome)

    def _prepare(self) -> None:
        self.check_store()
        self.health.mark_up("store")
        super()._prepare()

    def sweep(self) -> bool:
        more = self._fire()
        return False if more is None else super().sweep() or more

    def _while_waiting(self) -> None:
        if self._clock.monotonic() >= self._fire_at:
            self._fire()  # a read model that is unavailable holds up no deadline

    def _fire(self) -> bool | None:
        """Fires deadlines; True if there may be more, None while the store is unavailable."""
        self._fire_at = self._clock.monotonic() + self.sweep_interval
        try:
            self.check_store()
            more = fire_deadlines(self.applier.projection, self.applier.own, self.applier.amounts)
        except Unavailable as error:
            self.health.mark_down("store", str(error))
            return None
        self.health.mark_up("store")
        return more

    def _part_of(self, error: Unavailable) -> str:
        is_of_store = isinstance(error, StoreUnavailable | Overloaded)
        return "store" if is_of_store else super()._part_of(error)
