"""Log lines: JSON for machines, text for a terminal, each with the ids of its request."""

import atexit
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener
from queue import Empty, Queue
from types import MappingProxyType
from typing import Any, TextIO

from eventcore import jsontext
from eventcore.observe.metrics import BUILD
from eventcore.settings import Settings

_fields: ContextVar[Mapping[str, str]] = ContextVar("log fields", default=MappingProxyType({}))

_STANDARD = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"}


@contextmanager
def log_fields(**fields: str) -> Iterator[None]:
    """Every line logged within carries these fields."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def start(settings: Settings) -> None:
    """Show this process from now on: its log lines, and what it is."""
    start_logging(settings.service, settings.process, settings.log_format, settings.log_level)
    who = settings.service, settings.process, settings.version, settings.revision
    BUILD.labels(*who).set(1)


def start_logging(
    service: str, process: str, form: str, level: str, stream: TextIO | None = None
) -> None:
    """Logs to stdout, or `stream`; `form` is json, text, or auto: text on a terminal."""
    stream = stream or sys.stdout
    as_text = form == "text" or (form == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Text() if as_text else _Json(service, process))
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # in no line
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # the broker logs the same in one line
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    logging.getLogger("pymongo").setLevel(logging.WARNING)  # below, it logs whole documents
    logging.captureWarnings(True)
    sys.excepthook = lambda _kind, error, _place: _log_uncaught(error)
    threading.excepthook = lambda ended: _log_uncaught(ended.exc_value)
    sys.unraisablehook = lambda ended: _log_uncaught(ended.exc_value)


WAITING_LINES = 10_000
"""Maximum lines that wait to be written; then a thread that logs waits, too."""

GATHER = 0.01
"""Seconds for which lines are gathered, to be written at once."""


class _Queued(QueueHandler):
    """Formats a line in the thread that logs it, and hands it to the thread that writes."""

    def __init__(self, lines: Queue[str | None]) -> None:
        super().__init__(lines)
        self._lines = lines

    def prepare(self, record: logging.LogRecord) -> str:
        return self.format(record)

    def enqueue(self, record: Any) -> None:
        """Waits while the queue is full."""
        self._lines.put(record)


class _Gathered(QueueListener):
    """Writes lines in batches, each as one record of its handler."""

    def __init__(self, lines: Queue[str | None], handler: logging.Handler) -> None:
        super().__init__(lines, handler)
        self._lines = lines

    def dequeue(self, block: bool) -> Any:
        """Returns the lines that have gathered, or None, which is put when the process ends."""
        if (line := self._lines.get(block)) is None:
            return None
        time.sleep(GATHER)
        lines = [line]
        with suppress(Empty):
            while (line := self._lines.get_nowait()) is not None:
                lines.append(line)
            self._lines.put(None)  # it is met again, after the lines before it
        return logging.makeLogRecord({"msg": "\n".join(lines)})


def write_lines_in_background() -> None:
    """Has a thread of its own write the log lines from now on. Call it after any fork.

    A thread that writes releases the interpreter lock. Among many busy threads it then waits for
    the lock longer than the line takes.
    """
    root = logging.getLogger()
    [stream] = root.handlers
    lines = Queue[str | None](WAITING_LINES)
    queued = _Queued(lines)
    queued.setFormatter(stream.formatter)
    stream.setFormatter(None)  # the record that it gets is whole lines
    root.addHandler(queued)
    root.removeHandler(stream)
    listener = _Gathered(lines, stream)
    listener.start()
    atexit.register(listener.stop)


def _log_uncaught(error: BaseException | None) -> None:
    """Logs an uncaught exception as an ordinary line."""
    if isinstance(error, KeyboardInterrupt):
        return
    logging.getLogger("eventcore").critical("Uncaught exception", exc_info=error)


def format_exception_chain(error: BaseException | None) -> str:
    """Tracebacks of an exception and its causes, oldest first, with one-line messages.

    On further lines, and after "full error", drivers quote the row or the document that failed.
    """
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    parts = []
    for each in reversed(chain):
        said = str(each).strip().partition("\n")[0].partition(", full error")[0]
        parts += traceback.format_tb(each.__traceback__)
        parts.append(f"{type(each).__name__}: {said[:500].translate(_ONE_LINE)}\n")
    return "".join(parts)


class _Json(logging.Formatter):
    def __init__(self, service: str, process: str) -> None:
        super().__init__()
        self._always = {"service": service, "process": process}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **self._always,
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = format_exception_chain(record.exc_info[1])
        text = jsontext.render_line(line)
        return text if text.isascii() else text.translate(_ONE_OBJECT)


_BEYOND_ASCII = (*range(0x80, 0xA0), 0x2028, 0x2029)
"""Line breaks and terminal controls that are none of ASCII's."""

_ONE_OBJECT = {code: f"\\u{code:04x}" for code in _BEYOND_ASCII}

_ONE_LINE = {code: f"\\x{code:02x}" for code in (*range(32), 127)} | _ONE_OBJECT
"""A line break in a name does not begin a second log line, and no terminal obeys a name."""


class _Text(logging.Formatter):
    """For a terminal: a request is one short line; the ids of its request are in warnings alone."""

    def format(self, record: logging.LogRecord) -> str:
        if record.getMessage() == "Answered":
            said = "{method} {route} {status} {ms} ms".format_map(_own(record))
        else:
            shown = _own(record) if record.levelno < logging.WARNING else _extra(record)
            fields = " ".join(f"{name}={value}" for name, value in shown.items())
            said = f"{record.getMessage()}  {fields}".rstrip()
        text = f"{record.levelname:<7} {said}".translate(_ONE_LINE)
        if not record.exc_info:
            return text
        return f"{text}\n{format_exception_chain(record.exc_info[1])}".rstrip()


def _own(record: logging.LogRecord) -> dict[str, object]:
    return {k: v for k, v in record.__dict__.items() if k not in _STANDARD}


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {**_fields.get(), **_own(record)}
