"""The generation of a projection that serves, as a process caches it."""

from time import monotonic

from eventcore.model.view import AnyProjection
from eventcore.readmodel.port import Bookkeeping
from eventcore.readmodel.records import Generation, generation_of, parts_of

GENERATION_TTL = 1.0
"""Seconds for which a process caches which generation serves."""


class Serving:
    """Which generation of a projection serves; asked once a second at most."""

    def __init__(self, projection: AnyProjection, readmodel: Bookkeeping) -> None:
        self._projection = projection
        self._readmodel = readmodel
        self._known = generation_of(projection)
        self._asked_at = float("-inf")
        self._epochs: dict[str, str] = {}

    def now(self) -> Generation:
        """The generation; raises ReadModelUnavailable."""
        if monotonic() - self._asked_at > GENERATION_TTL:
            number = self._readmodel.generations(self._projection.name).serving
            self._known = generation_of(self._projection, number)
            self._asked_at = monotonic()
        return self._known

    def epoch(self) -> str:
        """The epoch of the log that a projection's generation is folded from; "": not known yet.

        It never changes, so it is read once. Raises ReadModelUnavailable.
        """
        name = self.now().name
        if not self._epochs.get(name):
            self._epochs[name] = self._readmodel.checkpoint(name).store_epoch
        return self._epochs[name]

    def parts(self) -> list[Generation]:
        """The generation, or its part for each store; raises ReadModelUnavailable."""
        return parts_of(self._projection, self.now().number)
