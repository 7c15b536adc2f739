"""The declaration of a service: its name, port, paths and projectors. Pure.

A service declares itself in its own folder, in `service.py`; all that runs it follows from that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eventcore.model.catalogue import Catalogue
from eventcore.model.decider import Decider
from eventcore.model.saga import Saga
from eventcore.model.view import AnyProjection

STORE_LOGINS = {"owner": None, "service": "event_append", "relay": "event_relay"}
"""The purposes of the logins of a service's store, and the role that each is a member of."""


@dataclass(frozen=True, slots=True)
class Projector:
    """The process that runs one projection. `name` is the name of its login as well."""

    name: str
    projection: AnyProjection
    settings: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that it needs to differ from the defaults."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service with an event store, a relay and read models; `name` is its aggregate type.

    The gateway forwards `paths`, with any method. `{id}` in a path stands for a UUID.
    `catalogue` has the events of its aggregate, `others` those of further aggregates in its store.
    `deciders` are those whose streams have snapshots, for `verify --snapshots`. `sagas` are those
    in its store, for the command `saga` and the metric of stuck ones.
    """

    name: str
    title: str
    about: str
    port: int
    paths: tuple[str, ...]
    catalogue: Catalogue
    projectors: tuple[Projector, ...]
    others: tuple[Catalogue, ...] = ()
    deciders: tuple[Decider[Any, Any, Any], ...] = ()
    sagas: tuple[Saga, ...] = ()

    @property
    def catalogues(self) -> tuple[Catalogue, ...]:
        """The events of all aggregates in its store."""
        return (self.catalogue, *self.others)

    @property
    def projections(self) -> tuple[AnyProjection, ...]:
        """The projections of its projectors."""
        return tuple(each.projection for each in self.projectors)
