"""A link between a process and a server that can be hurt: TCP, byte for byte, until told otherwise.

down    nothing listens, and all connections are reset
reset   all connections are reset; new ones are taken
hole    the kernel drops what arrives, so nobody answers and nobody hangs up (half-open)
slow    each piece waits; narrow: so many bytes a second; sliced: a few bytes at a time
cut     the link breaks at a step of the protocol: after the question, before its answer
"""

import asyncio
import ctypes
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.chaos.steps import Step

Result = TypeVar("Result")

HOST = "127.0.0.1"

_ATTACH, _DETACH = 26, 27  # SO_ATTACH_FILTER, SO_DETACH_FILTER
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0


@dataclass
class Flow:
    """How bytes pass: seconds a piece waits, give or take; bytes a second; bytes in a piece."""

    latency: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    slice: int = 0
    answers_only: bool = False


@dataclass(eq=False)
class _Pair:
    """A client's connection and the one to the server that it stands for."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    asked: bool = False
    tails: dict[bool, bytes] = field(default_factory=lambda: {True: b"", False: b""})

    def sockets(self) -> list[Any]:
        return [w.get_extra_info("socket") for w in (self.client, self.server)]

    def abort(self) -> None:
        """Reset both ends."""
        for writer in (self.client, self.server):
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    """Listens on `port` and passes everything on to `target`, another port of this machine."""

    def __init__(self, loop: "Loop", port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.flow = Flow()
        self._loop = loop
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None
        self._step: Step | None = None
        self._cut = threading.Event()
        self._passing = asyncio.Event()
        self._random = random.Random(port)
        loop.proxies.append(self)
        loop.run(self._listen())

    @property
    def carries(self) -> bool:
        """Whether there is any connection over it now."""
        return bool(self._pairs)

    def down(self) -> None:
        """See above; until `heal`."""
        self._loop.run(self._down())

    def reset(self) -> None:
        """See above; at once, nothing to heal."""
        self._loop.run(self._abort_all())

    def hole(self) -> None:
        """See above; until `heal`."""
        self._loop.run(self._hole())

    def cut(self, step: Step) -> threading.Event:
        """Break the next connection that comes to this step; the event is set when it has."""
        self._cut = threading.Event()
        self._step = step
        return self._cut

    def heal(self) -> None:
        """Let everything pass again."""
        self.flow = Flow()
        self._step = None
        self._loop.run(self._heal())

    # ── in the loop's thread ──────────────────────────────────────────────────────────────

    async def _listen(self) -> None:
        self._passing.set()
        self._server = await asyncio.start_server(self._serve, HOST, self.port, backlog=1024)

    async def _down(self) -> None:
        if self._server:
            self._server.close()
            self._server = None
        await self._abort_all()

    async def _abort_all(self) -> None:
        for pair in list(self._pairs):
            pair.abort()

    async def _hole(self) -> None:
        self._passing.clear()
        for sock in self._all_sockets():
            where = struct.pack("HL", 1, ctypes.addressof(_DROP_ALL))
            sock.setsockopt(socket.SOL_SOCKET, _ATTACH, where)

    async def _heal(self) -> None:
        if not self._passing.is_set():
            for sock in self._all_sockets():
                sock.setsockopt(socket.SOL_SOCKET, _DETACH, 0)
        self._passing.set()
        if self._server is None:
            await self._listen()

    def _all_sockets(self) -> list[Any]:
        listening = list(self._server.sockets) if self._server else []
        return listening + [s for p in self._pairs for s in p.sockets() if s and s.fileno() >= 0]

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            behind, server = await asyncio.open_connection(HOST, self.target)
        except OSError:
            client.transport.abort()
            return
        pair = _Pair(client, server)
        self._pairs.add(pair)
        try:
            await asyncio.gather(
                self._pump(pair, reader, server, asks=True),
                self._pump(pair, behind, client, asks=False),
            )
        except OSError:
            pair.abort()  # an end is gone, as happens when things are hurt
        finally:
            self._pairs.discard(pair)
            client.close()
            server.close()

    async def _pump(
        self, pair: _Pair, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asks: bool
    ) -> None:
        while data := await source.read(65536):
            await self._passing.wait()
            if self._step is not None and self._is_reached(self._step, pair, data, asks):
                self._step = None
                pair.abort()
                self._cut.set()
                return
            for piece in self._pieces(data):
                await self._let_time_pass(len(piece), asks)
                sink.write(piece)
                await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()

    def _is_reached(self, step: Step, pair: _Pair, data: bytes, asks: bool) -> bool:
        """Whether this piece, which may begin in the midst of something, is the lost answer."""
        seen = pair.tails[asks] + data
        pair.tails[asks] = seen[-64:]
        if asks:
            pair.asked = pair.asked or bool(step.question.search(seen))
            return False
        return pair.asked and bool(step.answer.search(seen))

    def _pieces(self, data: bytes) -> list[bytes]:
        size = self.flow.slice or len(data)
        return [data[begin : begin + size] for begin in range(0, len(data), size)]

    async def _let_time_pass(self, size: int, asks: bool) -> None:
        flow = self.flow
        if asks and flow.answers_only:
            return
        wait = max(0.0, flow.latency + self._random.uniform(-flow.jitter, flow.jitter))
        wait += size / flow.rate if flow.rate else 0.0
        if wait:
            await asyncio.sleep(wait)


class Loop:
    """The thread that all proxies run in."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, _context: None)  # resets are our trade
        self.proxies: list[Proxy] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do it in the loop's thread; what it answers."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def stop(self) -> None:
        """End it, and all connections with it."""
        for proxy in self.proxies:
            proxy.heal()
            proxy.down()
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _end(self) -> None:
        """End what is still under way."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
