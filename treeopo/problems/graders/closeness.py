"""What math-verify calls equal and is not: a second look at a pair that it took for right.

It rounds to six decimals, takes a difference below 1e-15 for none, and drops what it cannot read: the base of a number,
units, the colon of a ratio. Here nothing becomes right that was wrong. `told_apart` looks at the text, `are_close` at
what sympy made of it.
"""

import re
from itertools import zip_longest
from typing import Any

EXACT = 1e-50
"""Relative difference of two exact values, both to 60 digits, that is rounding."""

ROUNDED = 2e-6
"""The same where one of them was written as a decimal: 0.333333 is a third."""

_DIGITS = 60
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad\b|[~\s]+")
_BASED = re.compile(r"(?<![A-Za-z0-9\\}])([0-9][0-9A-F]*|[A-F][0-9A-F]+)_(?:\{\s*(?:base)?\s*([0-9a-z]+)\s*\}|([0-9]))")
_RATIO = re.compile(r"[^:]+(?::[^:=]+)+")
_DECIMAL = re.compile(r"[-+]?[0-9]*\.([0-9]+)")
_NAMES_OF_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NAMED_BASES = {name: str(base) for base, name in enumerate(_NAMES_OF_BASES, start=2)} | {"sixteen": "16"}
_UNITS = {
    "mm": "millimet(?:er|re)s?",
    "cm": "centimet(?:er|re)s?",
    "m": "met(?:er|re)s?",
    "km": "kilomet(?:er|re)s?",
    "in": "inch(?:es)?",
    "ft": "foot|feet",
    "yd": "yards?|yds",
    "mi": "miles?",
    "mg": "milligrams?",
    "g": "grams?",
    "kg": "kilograms?|kgs",
    "oz": "ounces?",
    "lb": "pounds?|lbs",
    "ml": "millilit(?:er|re)s?|mL",
    "l": "lit(?:er|re)s?|L",
    "s": "seconds?|secs?",
    "min": "minutes?|mins",
    "h": "hours?|hrs?",
    "day": "days?",
    "week": "weeks?",
    "month": "months?",
    "year": "years?|yrs?",
    "degree": r"degrees?|\^\{?\\circ\}?|°",
    "radian": "radians?|rad",
    "$": r"\\?\$|dollars?",
    "cent": "cents?|¢",
    "%": r"\\?%|percent",
    "mph": "miles per hour",
}
_UNIT = re.compile(
    r"(?P<power>(?:square|sq\.?|cubic)\s*)?(?:"
    + "|".join(f"(?P<u{index}>{re.escape(unit)}|{words})" for index, (unit, words) in enumerate(_UNITS.items()))
    + r")\.?(?:\s*\^\s*\{?\s*(?P<exponent>[23])\s*\}?)?"
)
_UNIT_NAMES = list(_UNITS)
_NUMBER_BEFORE = re.compile(r"(?P<dollar>\\?\$\s*)?[-+]?[0-9][0-9.,]*(?:/[0-9]+)?\s*|.*[0-9})]\s*", re.DOTALL)


def told_apart(gold: str, answer: str) -> bool:
    """Whether the text of two answers says that they differ, whatever their values: by base, unit or ratio."""
    gold, answer = (_SPACES.sub(" ", latex).strip() for latex in (gold, answer))
    if _bases(gold) != _bases(answer):
        return True
    units = _unit(gold), _unit(answer)
    return (all(units) and units[0] != units[1]) or ((":" in gold) != (":" in answer) and _has_ratio(gold, answer))


def are_one_number(gold: str, answer: str) -> bool:
    """Whether both are a number in a named base, and the same: `52_8`, `52_{\\text{eight}}`."""
    bases = [(_BASED.fullmatch(_TEXT.sub(r"\1", latex.strip())), _bases(latex)) for latex in (gold, answer)]
    return bool(bases[0][0] and bases[1][0]) and bases[0][1] == bases[1][1]


def ratio(latex: str) -> list[str] | None:
    """The terms of a ratio or of a time of day, `2:3`; None for anything else."""
    latex = _SPACES.sub(" ", latex).replace("\\colon", ":").strip()
    return latex.split(":") if _RATIO.fullmatch(latex) and not re.search(r"[{(\[]", latex) else None


def are_close(gold: Any, answer: Any, gold_text: str, answer_text: str) -> bool:
    """Whether two sympy objects that math-verify calls equal are as close as they were written.

    Exact values are equal to 50 digits. Where one was written as a decimal six significant digits are the same, and of
    two decimals the longer one rounds to the shorter. Variables are replaced by numbers. What is not a number, or not
    of one shape, is left to math-verify.
    """
    written = _decimals(gold_text), _decimals(answer_text)
    if None not in written and not _rounds(gold_text, answer_text, written):
        return False
    return all(_pair_is_close(one, other) for one, other in _pairs(gold, answer))


def _has_ratio(gold: str, answer: str) -> bool:
    return ratio(gold) is not None or ratio(answer) is not None


def _bases(latex: str) -> list[tuple[str, str]]:
    found = _BASED.findall(_TEXT.sub(r"\1", latex))
    return sorted((digits.lstrip("0"), _NAMED_BASES.get(long, long) or short) for digits, long, short in found)


def _unit(latex: str) -> str | None:
    """The known unit that a quantity is followed by, with its power: `cm`, `cm^2`; None without one."""
    plain = _TEXT.sub(r" \1 ", latex).strip(" .")
    number = _NUMBER_BEFORE.match(plain)
    if number is None:
        return None
    after = plain[number.end() :].strip()
    if not after:
        return "$" if number["dollar"] else None
    found = _UNIT.fullmatch(after)
    if found is None:
        return None
    unit = next(name for index, name in enumerate(_UNIT_NAMES) if found[f"u{index}"])
    power = found["exponent"] or {"s": "2", "c": "3"}.get((found["power"] or " ")[0], "")
    return unit + power


def _decimals(latex: str) -> int | None:
    found = _DECIMAL.fullmatch(latex.strip())
    return len(found[1]) if found else None


def _rounds(gold: str, answer: str, written: tuple[int | None, int | None]) -> bool:
    from decimal import Decimal

    places = min(places for places in written if places is not None)
    one, other = Decimal(gold.strip()), Decimal(answer.strip())
    return one == other or round(one, places) == round(other, places)


def _pairs(gold: Any, answer: Any) -> list[tuple[Any, Any]]:
    """The numbers of both that stand for one another."""
    from sympy import Eq, FiniteSet, Interval, MatrixBase, Tuple
    from sympy.core.relational import Relational

    if isinstance(gold, Relational) and isinstance(answer, Relational):
        answer = answer.reversed if gold.lhs == answer.rhs else answer
        return _pairs(gold.rhs, answer.rhs) if gold.lhs == answer.lhs else []
    gold, answer = (one.rhs if isinstance(one, Eq) else one for one in (gold, answer))
    parts = []
    for one in (gold, answer):
        match one:
            case Interval():
                parts.append([one.start, one.end])
            case FiniteSet():
                parts.append(_ordered(one.args))
            case Tuple():
                parts.append(list(one.args))
            case MatrixBase():
                parts.append(list(one))
            case _:
                parts.append([one])
    if FiniteSet in map(type, (gold, answer)) and not all(isinstance(one, FiniteSet) for one in (gold, answer)):
        parts = [_ordered(part) for part in parts]
    if len(parts[0]) != len(parts[1]):
        return []
    if parts == [[gold], [answer]]:
        return [(gold, answer)]
    return [pair for one, other in zip_longest(*parts) for pair in _pairs(one, other)]


def _ordered(parts: Any) -> list[Any]:
    try:
        return sorted(parts, key=lambda part: float(_value(getattr(part, "rhs", part))))
    except (TypeError, ValueError, AttributeError):
        return []


def _pair_is_close(gold: Any, answer: Any) -> bool:
    from sympy import Float

    if gold == answer:
        return True
    try:
        if gold.free_symbols != answer.free_symbols:
            return True
        one, other = _value(gold), _value(answer)
        if not (one.is_number and other.is_number and one.is_finite and other.is_finite):
            return True
        bound = ROUNDED if gold.has(Float) or answer.has(Float) else EXACT
        size = max(abs(one), abs(other))
        return bool(size == 0 or any(abs(one - scaled) <= bound * size for scaled in _percents(answer, other, gold)))
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return True  # no numbers: math-verify's own word stands


def _percents(answer: Any, value: Any, gold: Any) -> list[Any]:
    """A percentage is its value, and the number before the sign: math-verify takes 9% for 9."""
    return [value, value * 100, value / 100] if "1/100" in str(answer) or "1/100" in str(gold) else [value]


def _value(expression: Any) -> Any:
    from sympy import Rational

    if hasattr(expression, "doit"):
        expression = expression.doit()
    known = {
        symbol: Rational(7 * index + 11, 13) for index, symbol in enumerate(sorted(expression.free_symbols, key=str), 1)
    }
    return expression.subs(known).evalf(_DIGITS)
