"""The services of the repository, as their own folders declare them, and what follows from that.

Uses the standard library alone, so that a tool can run on any Python of the machine.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path

from eventcore.model.service import STORE_LOGINS, Service

ROOT = Path(__file__).parent.parent
METRICS_PORT = 23000
"""The port of the first process's metrics; the others follow it, in the order of PROCESSES."""


def declared(folder: Path) -> dict[str, Service]:
    """The services of a folder by name, in the order of their ports."""
    modules = (f"{file.parent.name}.service" for file in folder.glob("*/service.py"))
    found: list[Service] = [importlib.import_module(each).SERVICE for each in modules]
    return {each.name: each for each in sorted(found, key=lambda each: each.port)}


SERVICES: Mapping[str, Service] = declared(ROOT / "services")

SERVED = ("gateway", *(f"{name}-service" for name in SERVICES))
"""The processes that serve HTTP: their ports follow one another."""

PROJECTORS = tuple(each.name for service in SERVICES.values() for each in service.projectors)

PROCESSES = (*SERVED, *(f"{name}-relay" for name in SERVICES), *PROJECTORS)
"""All processes, in an order in which they can be started and stopped."""

LOGINS = {
    "postgres": ("admin", *(f"{name}_{each}" for name in SERVICES for each in STORE_LOGINS)),
    "rabbitmq": ("admin", "monitor", *(f"{name}-relay" for name in SERVICES), *PROJECTORS),
    "mongodb": ("admin", *(f"{name}-service" for name in SERVICES), *PROJECTORS),
    "feed": tuple(SERVICES),
}
"""Every login of the system, by server; those of `feed` are the services' tokens."""
