"""What one cell of a row says: texts and numbers, alike for every reader, whatever kind of file it came from.

Complaints are `ValueError` in words that go on from a column's name ("is null; give a text").
"""

import math
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

ABSENT = object()
"""What `cell` gives where a row has no such column."""

_MAX_DIGITS = 400  # of a number in full: beyond any answer, and short of filling the memory (1e999999999)


def cell(row: Any, column: str) -> Any:
    """The value of a column; `outer.inner` is one of an object in a column, unless a column has that very name."""
    if not isinstance(row, Mapping):
        return ABSENT
    if column in row:
        return row[column]
    outer, dot, inner = column.partition(".")
    while dot:
        if outer in row:
            return cell(row[outer], inner)
        more, dot, inner = inner.partition(".")
        outer = f"{outer}.{more}"
    return ABSENT


def text_of(value: Any) -> str:
    """A cell that should hold a text; bytes are UTF-8, as some writers of Parquet leave them.

    Raises:
        ValueError: it holds none, or a blank one.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ValueError("is bytes that are no UTF-8 text; give a text") from None
    if not isinstance(value, str):
        raise ValueError(f"is {shown(value)}; give a text")
    if not value.strip():
        raise ValueError("is empty; give a text")
    return whole_characters(value)


def whole_characters(text: str) -> str:
    """`text`, which UTF-8 can hold: no half of a character of two, as JSON has where a text was cut.

    Raises:
        ValueError: it has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise ValueError(f"holds half a character ({half}, at {error.start}), as cut texts do; mend it") from None
    return text


def text_or_number(value: Any) -> str:
    """`text_of`, but that a number counts as it is written (`number_text`).

    Raises:
        ValueError: it holds neither.
    """
    if is_number(value):
        return number_text(value)
    try:
        return text_of(value)
    except ValueError as error:
        raise ValueError(f"{error} or a number") from None


def is_number(value: Any) -> bool:
    """Whether it is a number: int, float, Decimal or numpy's. True and False are none."""
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


def number_text(value: Any) -> str:
    """A number in full, without an exponent, and without a point where it is whole: 7, 0.5, 12 (12.0), 10000 (1e4).

    A float is the shortest decimal that reads as it, a Decimal what it says.

    Raises:
        ValueError: it is not finite, or has too many digits to be written in full.
    """
    exact = Decimal(str(value))
    if not exact.is_finite():
        raise ValueError(f"is {shown(value)}; give a finite number")
    if max(abs(exact.adjusted()), len(exact.as_tuple().digits)) > _MAX_DIGITS:
        raise ValueError(f"is {shown(value)}, of more than {_MAX_DIGITS} digits; give it as a text")
    whole, _, fraction = f"{exact:f}".partition(".")
    return f"{whole}.{fraction}" if fraction.strip("0") else whole


def finite_float(value: Any) -> float:
    """A cell that should hold a number, as a float; true is 1 and false 0.

    Raises:
        ValueError: it holds none, or one that is not finite.
    """
    if isinstance(value, bool):
        return float(value)
    if not is_number(value):
        hint = " (without quotes)" if isinstance(value, str | bytes) else ""
        raise ValueError(f"is {shown(value)}; give a number{hint}")
    number = float(str(value))  # of a float32, what is written, not its nearest float64
    if not math.isfinite(number):
        raise ValueError(f"is {shown(value)}; it must be finite")
    return number


def whole_number(value: Any) -> int:
    """A cell that should hold a count.

    Raises:
        ValueError: it holds no whole number from 0 to 2^31 - 1.
    """
    number = finite_float(value)
    if not number.is_integer() or not 0 <= number < 2**31:
        raise ValueError(f"is {shown(value)}; give a whole number from 0 to 2^31 - 1")
    return int(number)


def shown(value: Any) -> str:
    """A value in a few words, as JSON has it where it can."""
    if value is ABSENT:
        return "missing"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str | bytes):
        return f"the text {value[:40]!r}" if isinstance(value, str) else "bytes"
    if is_number(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(value).lower(), f"{value!s:.40}")
    if isinstance(value, Mapping):
        return f"an object ({', '.join(map(str, list(value)[:4]))})" if value else "an empty object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"
