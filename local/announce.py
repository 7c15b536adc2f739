"""Prints what `make run` tells people: where everything is, what to paste first, what has died."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Event

from honcho.printer import Message, Printer

from local.child import Child, is_alive
from local.identity import Credentials
from local.processes import Process
from local.services import SERVED
from local.shop import says_ready

PATIENCE = 60
"""Seconds until it says what it still waits for."""

REMIND_AFTER = 40
"""Lines of log on a terminal until it says again where everything is."""

_FIRST_CURL = """\
curl -i {gateway}/users -H 'Content-Type: application/json' \\
  -d '{{"name": "Grace Hopper", "email": "grace@example.com"}}'"""

_FIRST_CURL_SIGNED = """\
TOKEN={token}
curl -i {gateway}/users/{user} -H "Authorization: Bearer $TOKEN"
curl -i {gateway}/orders -H "Authorization: Bearer $TOKEN" \\
  -H 'Content-Type: application/json' \\
  -d '{{"userId": "{user}", "item": "Laptop", "price": 1249.9}}'"""

_WITHOUT_IDENTITY = "Calls to try are at {docs}. A first one to paste:"

_WITH_IDENTITY = """\
Calls need a token. This one is of the user {user}. It has the scopes
read and write, and expires in 24 hours. Calls to try are at {docs}:
press Authorize and enter the token. First calls to paste, to read the user and to order:"""

_FOR_ADMIN = """\
An operator sees everything, also Flow and Projections on the page, which that user may not
see. This token has the scope admin as well:

{token}"""

MakeCredentials = Callable[[], Credentials]
"""Creates a user through the gateway."""


def say(text: str) -> None:
    """One line, or more, for people; at once."""
    print(text, flush=True)


def paint(text: str, code: int) -> str:
    """`text` in a colour of ANSI's, on a terminal; else as it is."""
    return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() else text


class RemindingPrinter(Printer):  # type: ignore[misc]
    """Prints the processes' lines; on a terminal, `reminder` again when it is out of sight."""

    def __init__(self, reminder: str) -> None:
        super().__init__(sys.stdout)
        self._reminder = reminder
        self._lines = 0

    def write(self, message: Message) -> None:
        """Prints one line; see Printer."""
        super().write(message)
        self._lines += 1
        if self._lines >= REMIND_AFTER and sys.stdout.isatty():
            self._lines = 0
            say(paint(self._reminder, 36))


def announce(
    processes: Sequence[Process],
    places: Mapping[str, str],
    servers: Sequence[Child],
    make_credentials: MakeCredentials | None,
    stop: Event,
) -> None:
    """Says when all processes are ready, and when a server has ended by itself, until `stop`."""
    begun = time.monotonic()
    waiting, running = list(processes), list(servers)
    impatient = False
    while not stop.wait(0.1 if waiting else 1):
        for server in [each for each in running if not is_alive(each.pid)]:
            running.remove(server)
            say(paint(_ended(server), 31))
        if waiting:
            waiting = [each for each in waiting if not says_ready(each.ready_url)()]
            if not waiting:
                say(_welcome(processes, places, make_credentials() if make_credentials else None))
            elif not impatient and time.monotonic() - begun > PATIENCE:
                names = ", ".join(each.name for each in waiting)
                say(paint(f"Still waiting for {names}: see what they say above.", 33))
                impatient = True


def _ended(server: Child) -> str:
    return (
        f"{server.name} has ended, and nothing starts it again. Its last words: "
        f"{server.last_words()}. Data stays in its folder: press Ctrl-C, then `make run` again."
    )


def _welcome(
    processes: Sequence[Process], places: Mapping[str, str], known: Credentials | None
) -> str:
    urls = {each.name: f"http://localhost:{each.port}" for each in processes}
    served = {name: urls[name] for name in SERVED}
    metrics = {
        each.name: f"http://localhost:{each.env['METRICS_PORT']}/metrics" for each in processes
    }
    rows = [f"  {name:<16} {url}" for name, url in {**served, **places}.items()]
    told, curl = (_WITH_IDENTITY, _FIRST_CURL_SIGNED) if known else (_WITHOUT_IDENTITY, _FIRST_CURL)
    fields = {"gateway": served["gateway"], **(known._asdict() if known else {})}
    admin = paint(f"ADMIN_TOKEN={known.admin}", 36) if known else ""
    rows += ["", "Metrics of each process:", "", *(f"  {n:<16} {u}" for n, u in metrics.items())]
    return "\n".join(
        [
            "",
            f"{paint('Everything is ready.', 32)} Look at it:",
            "",
            paint(f"  {served['gateway']}", 36),
            "",
            *rows,
            "",
            told.format(docs=paint(served["gateway"] + "/docs", 36), **fields),
            "",
            paint(curl.format(**fields), 36),
            "",
            *([_FOR_ADMIN.format(token=admin), ""] if known else []),
            "`make demo` in another terminal plays the whole journey. Ctrl-C stops everything.",
            "",
        ]
    )
