"""The proxy: what it does to a link is what its name says."""

import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from local.servers import free_port
from tests.chaos.proxy import Flow, Loop, Proxy
from tests.chaos.steps import Step

TCP_USER_TIMEOUT = 18


class Echo(threading.Thread):
    """A server that sends everything back."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.heard = b""

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    self.heard += data
                    connection.sendall(data)
            except OSError:
                return


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    echo.start()
    yield echo
    echo.listener.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    loop = Loop()
    yield Proxy(loop, free_port(), echo.port)
    loop.stop()


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def ask(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    answer = b""
    while len(answer) < len(data):
        some = connection.recv(65536)
        if not some:
            break
        answer += some
    return answer


def _until_the_end(connection: socket.socket) -> None:
    while connection.recv(100):
        pass


def test_everything_passes_byte_for_byte(proxy: Proxy) -> None:
    with dial(proxy) as connection:
        data = bytes(range(256)) * 2000
        assert ask(connection, data) == data


def test_a_link_that_is_down_refuses_and_resets_until_it_is_healed(proxy: Proxy) -> None:
    with dial(proxy) as connection:
        assert ask(connection, b"here") == b"here"
        proxy.down()
        with pytest.raises(ConnectionRefusedError):
            dial(proxy)
        with pytest.raises(ConnectionResetError):
            ask(connection, b"gone")
    proxy.heal()
    with dial(proxy) as connection:
        assert ask(connection, b"back") == b"back"


def test_a_black_hole_acknowledges_nothing_and_ends_when_it_is_healed(proxy: Proxy) -> None:
    with dial(proxy) as connection, dial(proxy) as patient:
        assert ask(connection, b"here") == b"here"
        assert ask(patient, b"here") == b"here"
        connection.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 500)
        proxy.hole()
        connection.sendall(b"lost")
        patient.sendall(b"late")
        with pytest.raises(OSError, match="timed out") as gone:
            connection.recv(4)
        assert gone.value.errno, "the kernel, and not our own patience"
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", proxy.port), timeout=0.5)
        proxy.heal()
        assert patient.recv(4) == b"late"


def test_a_cut_loses_the_answer_after_the_question_was_heard(proxy: Proxy, echo: Echo) -> None:
    done = proxy.cut(Step(re.compile(b"question"), re.compile(b"quest")))
    with dial(proxy) as connection:
        assert ask(connection, b"before") == b"before"
        connection.sendall(b"ques")
        connection.sendall(b"tion")
        with pytest.raises(ConnectionResetError):
            _until_the_end(connection)
    assert done.wait(5)
    assert echo.heard.endswith(b"question")
    with dial(proxy) as connection:
        assert ask(connection, b"question") == b"question", "only once"


def test_a_link_may_be_late_or_narrow_or_sliced(proxy: Proxy) -> None:
    for flow, data in ((Flow(latency=0.2), b"x"), (Flow(rate=20_000), b"x" * 4000)):
        proxy.flow = flow
        with dial(proxy) as connection:
            began = time.monotonic()
            assert ask(connection, data) == data
            assert time.monotonic() - began > 0.35
    proxy.flow = Flow(slice=1)
    with dial(proxy) as connection:
        assert ask(connection, b"in pieces") == b"in pieces"
