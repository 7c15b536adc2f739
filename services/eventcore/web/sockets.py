"""The sockets of a service: their time limits, and TLS where settings name a certificate."""

import socket
import ssl
import struct
from typing import Any

from eventcore.errors import Misconfigured
from eventcore.settings import ServeSettings

SOCKET_TIME = 10
"""Seconds that one receive or send on a connection may take."""

SILENCE = 3600
"""Seconds that the kernel keeps a connection on which nothing has come, before it is accepted."""


def limit_sockets(listener: socket.socket) -> socket.socket:
    """Bounds what one peer can hold; Linux hands the options on to each accepted connection.

    A connection on which nothing has come stays in the kernel; a receive or send that takes longer
    than SOCKET_TIME raises BlockingIOError. See socket(7) and tcp(7).
    """
    limit = struct.pack("ll", SOCKET_TIME, 0)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        listener.setsockopt(socket.SOL_SOCKET, option, limit)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, SILENCE)
    return listener


class TLSSocket(ssl.SSLSocket):
    """A TLS connection on which each receive and send takes SOCKET_TIME at most.

    Python's ssl repeats a receive or send of a blocking socket that SO_RCVTIMEO or SO_SNDTIMEO has
    ended, so the limit is the socket's own; it raises TimeoutError.
    """

    def setblocking(self, flag: bool) -> None:
        self.settimeout(SOCKET_TIME if flag else 0)

    def do_handshake(self, block: bool = False) -> None:
        self.setblocking(True)
        super().do_handshake(block)


def tls_options(settings: ServeSettings) -> dict[str, Any]:
    """Returns gunicorn's settings for TLS; none without a certificate. Raises Misconfigured.

    gunicorn makes a context for each connection, so a renewed certificate needs no restart.
    """
    certificate, key = settings.tls_cert_file, settings.tls_key_file
    if not (certificate or key):
        return {}

    def context(_config: object, make: Any) -> ssl.SSLContext:
        made: ssl.SSLContext = make()
        made.sslsocket_class = TLSSocket
        return made

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except OSError as error:
        reason = f"TLS_CERT_FILE {certificate!r} and TLS_KEY_FILE {key!r} cannot be used: {error}"
        raise Misconfigured(reason) from error
    return {"certfile": certificate, "keyfile": key, "ssl_context": context}
