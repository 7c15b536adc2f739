"""The processes of the system, as data: the command and the environment of each.

The gateway; of each service, the service, its relay and its projectors. Each gets only the
passwords it needs, as files; of the projectors, a reactor alone can reach PostgreSQL.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from eventcore.model.service import STORE_LOGINS, Projector, Service
from eventcore.operate.provision import provision_store
from eventcore.operate.provision_broker import Limits, limit_queues
from eventcore.reactor import Reactor
from eventcore.retry import retry
from eventcore.settings import SERVERS, Secret, Server
from eventcore.store.migrate import migrate
from local.secretfiles import secret_file
from local.services import ROOT, SERVICES

PATIENCE = 30.0
"""Seconds for RabbitMQ's management API to come up after the broker itself."""

Environment = Mapping[str, str]


ENVIRONMENT = {
    "PYTHONPATH": str(ROOT / "services"),
    "OTEL_SEMCONV_STABILITY_OPT_IN": "http,database",
}
"""Variables that services/Dockerfile sets as well."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process: what to run, with which environment, and where it says that it is ready."""

    name: str
    argv: tuple[str, ...]
    env: Environment
    port: int
    ready_url: str


@dataclass(frozen=True, slots=True)
class Servers:
    """The addresses of the servers: PostgreSQL's with the administrator, each read model's with its
    login.
    """

    postgres: Server
    rabbitmq: Server
    readmodels: Mapping[str, Server]


def store_login(postgres: Server, service: str, purpose: str, secrets: Path) -> Server:
    """A login of a service's event store; `purpose` is owner, service or relay."""
    user = f"{service}_{purpose}"
    return replace(
        postgres, name=f"{service}_event_db", user=user, password=secret_file(secrets, user)
    )


def prepare_stores(postgres: Server, secrets: Path, services: Iterable[str] = SERVICES) -> None:
    """Make the event stores and their logins, and apply init.sql; changes nothing twice.

    Raises StoreUnavailable, Misconfigured.
    """
    for service in services:
        logins = [f"{service}_{purpose}" for purpose in STORE_LOGINS]
        provision_store(postgres, service, {each: secret_file(secrets, each) for each in logins})
        migrate(store_login(postgres, service, "owner", secrets), ROOT / "init.sql")


def limit_all_queues(management: Server) -> None:
    """Sets the limits of all queues, as `provision` does; `management` is RabbitMQ's API.

    Raises BrokerUnavailable.
    """
    for name, service in SERVICES.items():
        queues = [each.queue for each in service.projections]
        retry(partial(limit_queues, management, name, queues, Limits()), PATIENCE)


def processes(
    servers: Servers,
    secrets: Path,
    *,
    ports: Mapping[str, int],
    free_port: Callable[[], int],
    settings: Environment | None = None,
    identity: Environment | None = None,
) -> list[Process]:
    """The processes. `ports` has those of local.services.SERVED; metrics go to a `free_port`
    each; `settings` are added to the environment of all. With `identity`, the gateway's variables
    for it, callers are asked who they are.
    """
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    common = _inherited() | ENVIRONMENT | dict(settings or {})

    def store(service: str, purpose: str) -> Environment:
        return _told("store", store_login(servers.postgres, service, purpose, secrets))

    def readmodel(service: str) -> Environment:
        return _told("readmodel", servers.readmodels[service])

    def token(service: str, name: str = "FEED_TOKEN") -> Environment:
        return _secret(name, secret_file(secrets, f"{service}_feed_token"))

    def identity_token(service: str, name: str = "IDENTITY_TOKEN") -> Environment:
        secret = secret_file(secrets, f"{service}_identity_token")
        return {"AUTH": "on", **_secret(name, secret)} if identity else {}

    def process(name: str, command: str, service: str, *told: Environment) -> Process:
        metrics_port = free_port()
        env = common | {"SERVICE": service, "METRICS_PORT": str(metrics_port)}
        for each in told:
            env |= each
        argv = (sys.executable, "-m", "eventcore", *command.split())
        port = ports.get(name, metrics_port)
        return Process(name, argv, env, port, f"http://127.0.0.1:{port}/readyz")

    def service(name: str) -> Process:
        told = [store(name, "service"), readmodel(name), token(name), identity_token(name)]
        place = f"{name}-service"
        return process(place, "serve", name, {"PORT": str(ports[place])}, *told)

    def relay(name: str) -> Process:
        return process(f"{name}-relay", "relay", name, store(name, "relay"), broker)

    def projector(service: Service, each: Projector) -> Process:
        feed = dict[str, str]()
        owners = each.projection.owners
        for owner in owners:
            prefix = f"FEED_{owner.upper()}" if len(owners) > 1 else "FEED"
            feed |= {f"{prefix}_URL": urls[f"{owner}-service"]}
            feed |= token(owner, f"{prefix}_TOKEN")
        own = store(service.name, "service") if isinstance(each.projection, Reactor) else {}
        told = [own, readmodel(service.name), broker, feed, each.settings]
        return process(each.name, f"project {each.projection.name}", service.name, *told)

    broker = _told("broker", servers.rabbitmq)
    upstreams = {
        name: {"url": urls[f"{name}-service"], "paths": each.paths}
        for name, each in SERVICES.items()
    }
    gateway = {"PORT": str(ports["gateway"]), "UPSTREAMS": json.dumps(upstreams)}
    believed = [identity_token(name, f"IDENTITY_{name.upper()}_TOKEN") for name in SERVICES]
    return [
        process("gateway", "serve", "gateway", gateway, *believed, identity or {}),
        *map(service, SERVICES),
        *map(relay, SERVICES),
        *(projector(own, each) for own in SERVICES.values() for each in own.projectors),
    ]


def _told(role: str, server: Server) -> Environment:
    """A server, as the variables that settings.py reads for its `role`."""
    prefix = SERVERS[role]
    name = "VHOST" if role == "broker" else "DATABASE"
    return {
        f"{prefix}_HOST": server.host,
        f"{prefix}_PORT": str(server.port),
        f"{prefix}_{name}": server.name,
        f"{prefix}_USER": server.user,
        f"{prefix}_OPTIONS": server.options,
        f"{prefix}_TLS": "on" if server.tls else "off",
        f"{prefix}_CA_FILE": server.ca_file,
        **_secret(f"{prefix}_PASSWORD", server.password),
    }


def _secret(name: str, secret: Secret) -> Environment:
    return {f"{name}_FILE": str(secret.file)} if secret.file else {name: secret.value}


def _inherited() -> dict[str, str]:
    """Our own environment, so that a setting such as LOG_LEVEL can be given to all at once;
    without what says where servers are, which is each process's own.
    """
    prefixes = tuple(
        f"{prefix}_" for prefix in (*SERVERS.values(), "DATABASE", "FEED", "AUTH", "IDENTITY")
    )
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOST", "AUTH") and not name.startswith(prefixes)  # some export HOST
    }
