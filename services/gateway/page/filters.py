"""Filters of the templates: values as people read them. Pure."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal

from flask import Blueprint

from eventcore import jsontext


def clock(text: str | None) -> str:
    """The time of day of a text of RFC 3339, to the millisecond, in UTC."""
    return text[11:23] if text else "never"


def day(text: str | None) -> str:
    """Date and time of a text of RFC 3339, in UTC."""
    return f"{text[:10]} {text[11:19]}" if text else "never"


def duration(ms: float | None) -> str:
    """Milliseconds as people read them."""
    if ms is None:
        return "–"
    if ms < 1000:
        return f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"
    return f"{ms / 1000:.1f} s" if ms < 60_000 else str(timedelta(seconds=round(ms / 1000)))


def rate(value: float | None) -> str:
    """Events a second."""
    if value is None:
        return ""
    return "0/s" if value < 0.05 else f"{value:.1f}/s" if value < 100 else f"{value:.0f}/s"


def short(id: object) -> str:
    """The end of an id, by which people tell two apart: ids that are made together begin alike."""
    text = str(id)
    return f"…{text[-8:]}" if len(text) > 12 else text


def written(value: object) -> str:
    """A value of JSON as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {written(each)}" for name, each in value.items())
    return jsontext.render(value).decode()


def counted(number: int, noun: str) -> str:
    """A number of things, with the plural of its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def money(value: object) -> str:
    """A price with two decimals."""
    return f"{Decimal(str(value)):.2f}"


def shell(arguments: Sequence[str]) -> str:
    """The command of `python -m eventcore` with these arguments, quoted for a shell."""
    return f"python -m eventcore {shlex.join(arguments)}"


def add_filters(pages: Blueprint) -> None:
    """Makes them filters of the templates."""
    filters: Mapping[str, Callable[..., str]] = {
        "clock": clock, "day": day, "duration": duration, "rate": rate, "short": short,
        "written": written, "shell": shell, "counted": counted, "money": money,
    }  # fmt: skip
    for name, function in filters.items():
        pages.add_app_template_filter(function, name)
