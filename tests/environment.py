"""Settings read from an environment of a test's own, and the names of all variables."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TypeVar
from unittest.mock import patch

from eventcore import settings as declared
from eventcore.settings import Secret, Settings, read_settings
from gateway.main import Settings as Gateway
from local.services import SERVICES
from order.main import Settings as Order
from user.main import Settings as User

Kind = TypeVar("Kind", bound=Settings)

KINDS: tuple[type[Settings], ...] = (
    Gateway, User, Order, declared.RelaySettings, declared.ProjectorSettings,
)  # fmt: skip


def settings_from(environment: Mapping[str, str], kind: type[Kind], process: str = "test") -> Kind:
    """The settings that a process reads from `environment`; raises Misconfigured."""
    with patch.dict(os.environ, environment, clear=True):
        return read_settings(kind, process)


def variables() -> set[str]:
    """The name of every variable that a process reads; a secret's without _FILE."""
    limits = {
        name.upper()
        for name, field in declared.ProvisionSettings.model_fields.items()
        if field.validation_alias is None  # the servers' logins are those of the other kinds
    }
    feeds = {
        f"FEED_{owner.upper()}_{part}"
        for service in SERVICES.values()
        for projection in service.projections
        for owner in projection.owners
        if len(projection.owners) > 1
        for part in ("URL", "TOKEN")
    }
    identity = {"IDENTITY_TOKEN", *(f"IDENTITY_{name.upper()}_TOKEN" for name in SERVICES)}
    named = {name for kind in KINDS for name in _variables(kind)}
    return (named | limits | feeds | identity) - {"PROCESS", "IDENTITY", "MONGODB"}


def _variables(kind: type[Settings]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        prefix = str(field.validation_alias or name).upper()
        if not is_dataclass(field.annotation) or field.annotation is Secret:
            yield prefix
            continue
        for part in fields(field.annotation):
            database = "VHOST" if prefix == "RABBITMQ" else "DATABASE"
            yield f"{prefix}_{database if part.name == 'name' else part.name.upper()}"
