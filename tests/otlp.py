"""A receiver of traces: keeps every span that is exported to it, by OTLP over HTTP.

As a program, it prints its endpoint and runs until its input ends.
"""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.beside import beside


@dataclass(frozen=True)
class Span:
    """One span, ids as hexadecimal text."""

    service: str
    process: int
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, object]
    failed: bool


class Receiver(ThreadingHTTPServer):
    """Listens on a free port of this machine."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []

    @property
    def endpoint(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def of(self, trace: str) -> list[Span]:
        """The spans of one trace."""
        return [span for span in list(self.spans) if span.trace == trace]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        message = ExportTraceServiceRequest.FromString(body)
        for each in message.resource_spans:
            resource = _values(each.resource.attributes)
            for scope in each.scope_spans:
                for span in scope.spans:
                    self.server.spans.append(
                        Span(
                            service=str(resource["service.name"]),
                            process=int(str(resource["process.pid"])),
                            name=span.name,
                            kind=("", "internal", "server", "client", "producer", "consumer")[
                                span.kind
                            ],
                            trace=span.trace_id.hex(),
                            id=span.span_id.hex(),
                            parent=span.parent_span_id.hex(),
                            links=tuple((a.trace_id.hex(), a.span_id.hex()) for a in span.links),
                            attributes=_values(span.attributes),
                            failed=span.status.code == 2,
                        )
                    )
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is worth a line."""


def _values(attributes: object) -> dict[str, object]:
    return {
        each.key: getattr(each.value, str(each.value.WhichOneof("value")))
        for each in attributes  # type: ignore[attr-defined]
    }


@contextmanager
def silent() -> Iterator[str]:
    """The endpoint of one that takes every connection, and never reads or answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def unreachable() -> Iterator[str]:
    """The endpoint of one to which no connection comes about, as if its packets were dropped."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as waiting:
        for _ in range(4):  # it accepts none, so that there is no room for one more
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def receiver() -> Iterator[Receiver]:
    """One that runs."""
    with beside(Receiver()) as server:
        yield server


@contextmanager
def elsewhere() -> Iterator[str]:
    """The endpoint of one that runs in a process of its own: it takes none of this one's time."""
    program = [sys.executable, "-m", "tests.otlp"]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.communicate()


if __name__ == "__main__":
    with receiver() as running:
        sys.stdout.write(f"{running.endpoint}\n")
        sys.stdout.flush()
        sys.stdin.read()
