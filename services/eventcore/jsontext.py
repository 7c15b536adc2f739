"""JSON text to values and back, exactly: decimals stay decimals, and nothing is guessed.

The only file that imports msgspec, which refuses NaN, Infinity, broken UTF-8, lone
surrogates and bottomless nesting, and writes a Decimal as the number it is.
"""

from decimal import Decimal
from typing import Any

import msgspec

_decoder = msgspec.json.Decoder(float_hook=Decimal)
_encoder = msgspec.json.Encoder(decimal_format="number")


def parse(text: bytes | str) -> Any:
    """The value of a JSON text; raises ValueError with a reason for anything else."""
    try:
        return _decoder.decode(text)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not valid JSON: {error}") from error


def render(value: object) -> bytes:
    """The JSON text of a value: Decimals as numbers, UUIDs and times as text."""
    return _encoder.encode(value)
