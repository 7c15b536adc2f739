"""RabbitMQ's logins, rights and policies."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import urllib3
from urllib3.exceptions import HTTPError

from eventcore import jsontext
from eventcore.broker.topology import DEAD_LETTERS, EXCHANGE
from eventcore.errors import BrokerUnavailable
from eventcore.model.view import AnyProjection
from eventcore.operate.provision import MONITOR
from eventcore.settings import Secret, Server

DEAD_LETTER_DELIVERY_LIMIT = 1_000_000
"""Deliveries of a dead letter until RabbitMQ drops it: listing them is a delivery of each.

RabbitMQ before 4.0 has no value for "none", and later versions default to 20.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a projector's queue; beyond them messages are dropped, and the sweep applies them.

    `queue_bytes` drops the oldest messages, `deliveries` one that was delivered that often.
    """

    queue_bytes: int = 256 * 1024 * 1024
    deliveries: int = 20


def provision_broker(
    admin: Server,
    service: str,
    projections: Mapping[str, AnyProjection],
    passwords: Mapping[str, Secret],
    limits: Limits,
) -> None:
    """Makes or mends the logins of a service's relay, `{service}-relay`, and of its projectors,
    and the policies of the projectors' queues.

    `admin` is an administrator of the management API, `admin.port` that API's port, `admin.name`
    the virtual host, which is made if it does not exist. `projections` has the projection of each
    projector's login. Raises BrokerUnavailable, Misconfigured.
    """
    queues = [p.queue for p in projections.values() if service in p.owners]
    rights = {f"{service}-relay": _may(queues, publish=(EXCHANGE,), read=())}
    for login, projection in projections.items():
        read = (projection.queue, f"{projection.queue}.dead-letters")
        rights[login] = _may((projection.queue,), publish=(DEAD_LETTERS,), read=read)
    api = _Management(admin)
    vhost = quote(admin.name, safe="")
    if not api.has(f"vhosts/{vhost}"):
        api.put(f"vhosts/{vhost}", {})
    rights[MONITOR] = {"configure": "", "write": "", "read": ""}
    for login, may in rights.items():
        user = quote(login, safe="")
        tags = "monitoring" if login == MONITOR else ""
        api.put(f"users/{user}", {"password": passwords[login].read(), "tags": tags})
        api.put(f"permissions/{vhost}/{user}", may)
    limit_queues(admin, service, [p.queue for p in projections.values()], limits)


def limit_queues(admin: Server, service: str, queues: Sequence[str], limits: Limits) -> None:
    """Sets the policies of these queues and of their dead-letter queues. They take effect at once,
    also on queues that exist. `admin` as for `provision_broker`; raises BrokerUnavailable.

    Their priority is 0, so that an operator's own policy with a higher one comes before them.
    """
    letters = [f"{queue}.dead-letters" for queue in queues]
    api = _Management(admin)
    for name, those, deliveries in (
        (f"{service}-queues", queues, limits.deliveries),
        (f"{service}-dead-letters", letters, DEAD_LETTER_DELIVERY_LIMIT),
    ):
        policy = {
            "pattern": _exactly(*those),
            "definition": {
                "max-length-bytes": limits.queue_bytes,
                "overflow": "drop-head",
                "delivery-limit": deliveries,
            },
            "priority": 0,
            "apply-to": "queues",
        }
        api.put(f"policies/{quote(admin.name, safe='')}/{quote(name, safe='')}", policy)


def _may(queues: Sequence[str], publish: Sequence[str], read: Sequence[str]) -> dict[str, str]:
    """The rights to declare and bind these queues, and beyond that to publish to and read.

    Binding a queue is writing to it and reading the exchange; nothing but an exchange can be
    published to.
    """
    owned = [name for queue in queues for name in (queue, f"{queue}.dead-letters")]
    return {
        "configure": _exactly(EXCHANGE, DEAD_LETTERS, *owned),
        "write": _exactly(*publish, *owned),
        "read": _exactly(EXCHANGE, DEAD_LETTERS, *read),
    }


def _exactly(*names: str) -> str:
    return "^(" + "|".join(re.escape(name) for name in names) + ")$"


class _Management:
    """RabbitMQ's management API, as one of its administrators."""

    def __init__(self, admin: Server) -> None:
        self._url = f"{'https' if admin.tls else 'http'}://{admin.host}:{admin.port}/api"
        login = f"{admin.user}:{admin.password.read()}"  # urllib3's own helper takes Latin-1 alone
        self._headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=3, read=10),
            retries=False,
            ca_certs=admin.ca_file or None,
        )

    def has(self, what: str) -> bool:
        return self._ask("GET", what) != 404

    def put(self, what: str, body: Mapping[str, object]) -> None:
        status = self._ask("PUT", what, jsontext.render(body))
        if status == 404:
            raise BrokerUnavailable(f"RabbitMQ's management API knows no {what}")

    def _ask(self, method: str, what: str, body: bytes | None = None) -> int:
        headers = {**self._headers, "Content-Type": "application/json"}
        try:
            answer = self._pool.request(method, f"{self._url}/{what}", body=body, headers=headers)
        except HTTPError as error:
            raise BrokerUnavailable(
                f"RabbitMQ's management API cannot be reached: {error}"
            ) from error
        if answer.status >= 400 and answer.status != 404:
            reason = answer.data[:200].decode(errors="replace")
            raise BrokerUnavailable(f"RabbitMQ's management API answered {answer.status}: {reason}")
        return answer.status
