"""Runs a server of the standard library in a thread, beside a test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseServer
from typing import TypeVar

Running = TypeVar("Running", bound=BaseServer)


@contextmanager
def beside(server: Running) -> Iterator[Running]:
    """The server, as it serves; its thread has ended and its socket is closed afterwards."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
