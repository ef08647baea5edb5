"""The number that a text states, where it stands alone: nothing is cut out of something larger.

A number stands alone at the end of its text, before a blank and a word, a full stop, a comma or a closing mark
(`72 clips`, `72, in total`, `(72)`). `5\\sqrt{2}`, `3x+1`, `5!`, `52_8`, `2:3`, `0x10`, `5 or 7` and `1.8M` are none: a
part of them is not what was said. A unit (`5cm`, `90°`) and a percent sign (left out) may be written onto it.

Nothing is evaluated and nothing is slow: at most `LINE_CHARS` characters of a line are looked at, no pattern
backtracks, and a number of more than `_MAX_DIGITS` digits is none.
"""

import re
from fractions import Fraction
from typing import NamedTuple

Exact = int | Fraction
"""A number without rounding; `int` where it is written as one, which is several times as fast."""

LINE_CHARS = 256
_MAX_DIGITS = 64

_INTEGER = r"(?:[0-9]{1,3}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?![0-9])|[0-9]+)"
_NUMBER = (
    r"([-+]?)(?:(?<=[-+])\s+)?"
    r"(?:([0-9]+)\s+(?=[1-9][0-9]*/[1-9]))?"  # of a mixed number, 3 1/2
    rf"({_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE]([-+]?[0-9]{1,4})(?![0-9.]))?"
    r"(?:\s*/\s*([0-9]+))?"
)
_ANY = re.compile(_NUMBER)
_FIRST = re.compile(rf"[\s:({{\[*_\"'`]*{_NUMBER}")

_INTEGER_LINE = re.compile(r"\s*(-?[0-9]{1,18})[ \t]*(?:\n|$)")

UNITS = (
    "cm|mm|km|kg|mg|ml|mL|ft|in|yd|mi|lbs?|oz|mph|kph|mins?|hrs?|secs?|pm|am|st|nd|rd|th|inch(?:es)?|feet|met(?:er|re)s?"
    "|hours?|minutes?|seconds?|days?|degrees?|dollars?|cents?|percent"
)
_SCALES = "hundred|thousand|million|billion|trillion|thirds|fifths|sixths|eighths|tenths|hundredths|thousandths"
_VALUES = rf"{_SCALES}|pi|squared|cubed|factorial|sqrt|(?:square\s+)?roots?\s+of|(?:more|less|fewer)\s+than"
_JOINS = "and|or|to|through|plus|minus|times|over|choose|mod|modulo|divided by|multiplied by|out of"
_COMPOUNDS = "ft|feet|foot|yards?|h|hours?|hrs?|m|minutes?|mins?|days?|weeks?|months?|years?|dollars?|pounds?|lbs?|kg"
_VARIABLES = "[eiknxyzπ]"
_LETTER = r"[^\W\d_]"
KEEPS_VALUE = (
    rf"(?!(?i:{_VALUES})\b|(?i:{_JOINS})\s+(?:a\s+half\b|[-+$.(*_]*[0-9\\])|{_VARIABLES}(?!{_LETTER})"
    rf"|(?:{_COMPOUNDS}),?\s+(?:and\s+)?[0-9]+\s?{_LETTER})"
)
"""Holds where no word follows that makes another number of the one before: `5 million`, `5 or 7`, `5 ft 6 in`."""

# What may follow a number that stands alone; each alternative begins with another character.
_ALONE = re.compile(
    rf"(?:(?:{UNITS})(?:/(?:h|hr|s|min|day|week|l|L|kg|g))?(?!\w))?[%°¢'\"”’`)\]}}]*(?:[*_]+(?![\w{{\\(]))?(?:"
    r"\s*(?:$|[.](?!\.*[0-9]|\.|\\)|[,;](?!\s*(?:(?:and|or)\s+)?(?:[-+.({\[*_]*[0-9]|\\))|:(?!\s*[-+.]*[0-9])|\?)|[。，、]"
    rf"|\s+(?:[%°¢]|{KEEPS_VALUE}{_LETTER}|[*_\"'“‘`]+(?![\s\w])|[*_\"'“‘`]{_LETTER}{{2}}"
    rf"|[(\[](?:\s*(?!mod\b){_LETTER}{{2}}|[^()]*=)|[-\u2013\u2014]+\s*{_LETTER}{{2}}|[\u3000-\U0010ffff])|\s*<(?:[|/]|[a-z]{{2,}}[^<>]*>)"
    r"|(?![十百千万亿萬億兆分])[\u3040-\u9fff\uac00-\ud7af]"
    rf"|/\s?{_LETTER}{{2}}|[\u200b-\u200f\ufeff\u2600-\u27bf\U0001f000-\U0001faff]"
    r")"
)
_WORD_BEFORE = re.compile(
    rf"(?:^|[\s\"'“‘(*_])(?!(?:{_VALUES}|negative|minus|plus|times|over|root|sqrt|log|ln|sin|cos|tan|exp|not|below|under|than)$)"
    rf"[^\W\d_][\w'’.-]*{_LETTER}$|(?:^|[\s.,;:])(?:a|A|I)$",
)
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_FRACTION = re.compile(r"([0-9])?\s*\\[dt]?frac\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))")
_APOSTROPHES = re.compile(r"(?<=[0-9])['’](?=[0-9]{3}(?![0-9]))")  # 1'000, as Swiss write
_SPACES = re.compile(r"\\[,;: ]|\\q?quad\b|[~\u00a0\u2009\u202f]")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:bf|rm|it|sf)|[mh]box|emph|bold)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\s*(?:\\circ\b|\{\s*\\circ\s*\})|\\degree\b")
_TIMES = re.compile(r"\\(?:times|cdot|div)\b")
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|big|Big)\b|\\[()\[\]]")
_ATTACHED_CURRENCY = re.compile(r"(?<=[A-Za-z])[$€£¥]")
_DRESS = str.maketrans(dict.fromkeys("$€£¥"))
_SIGNS = str.maketrans({"\N{MINUS SIGN}": "-", "\N{HYPHEN}": "-", "\N{FULLWIDTH PLUS SIGN}": "+"})
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8"}


def strip_calculator(text: str) -> str:
    """`text` without GSM8K's calculator annotations, `<<48/2=24>>`."""
    return _CALCULATOR.sub("", text)


def parse_number(text: str) -> Exact | None:
    """The one number in `text`: `-1,234.50`, `$3`, `3 1/2`, `1.5e-7`, `42 apples`; None where there is none, more than
    one, or one that is part of something larger.
    """
    return _only(plain(text))


def stated_number(rest: str) -> Exact | None:
    """The number that the first line of `rest` begins with, or the only one it holds."""
    integer = _INTEGER_LINE.match(rest)
    if integer is not None:  # as nearly always
        return int(integer[1])
    line = plain(rest.lstrip().partition("\n")[0])
    number = leading_number(line)
    return _only(line) if number is None else number.value


class Leading(NamedTuple):
    """A number that a plain line begins with, and where in the line its digits stand."""

    value: Exact
    begin: int
    end: int


def leading_number(line: str) -> Leading | None:
    """The number that a plain line begins with, if it stands alone."""
    found = _FIRST.match(line)
    if found is None or not _ALONE.match(line, found.end()):
        return None
    value = _value(found)
    return None if value is None else Leading(value, found.start(1), found.end())


def plain(line: str) -> str:
    """`line` without currency, emphasis, LaTeX and calculator marks; a number that the limit cuts is left out whole."""
    if len(line) > LINE_CHARS:
        line = line[:LINE_CHARS].rstrip("0123456789.,/")
    if "{,}" in line:
        line = line.replace("{,}", ",")
    if "<<" in line:
        line = strip_calculator(line)
    if "~" in line or "'" in line:
        line = _APOSTROPHES.sub("", line.replace("~", " "))
    if not line.isascii():
        line = _APOSTROPHES.sub("", line)
        line = _SPACES.sub(" ", line.translate(_SIGNS))
        for sign, fraction in _VULGAR.items():
            line = line.replace(sign, f" {fraction}")
    if "\\" in line:
        line = _plain_latex(line)
    if "$" in line or not line.isascii():
        line = _ATTACHED_CURRENCY.sub(" ", line).translate(_DRESS)
    return line


def _plain_latex(line: str) -> str:
    line = _TEXT.sub(r" \1 ", line.replace("\\!", ""))
    line = _FRACTION.sub(lambda found: f"{found[1] or ''} {found[2] or found[3]}/{found[4] or found[5]}", line)
    line = _DEGREES.sub("°", _TIMES.sub("*", _LAYOUT.sub("", _SPACES.sub(" ", line))))
    return line.replace("\\$", "$").replace("\\%", "%").replace("\\\\", " ")


def _only(line: str) -> Exact | None:
    """The only number of a plain line, if it stands alone on both sides."""
    numbers = _ANY.finditer(line)
    found, other = next(numbers, None), next(numbers, None)
    if found is None or other is not None or not _ALONE.match(line, found.end()):
        return None
    return _value(found) if _begins_alone(line[: found.start()], found[0]) else None


def _begins_alone(before: str, number: str) -> bool:
    """Whether nothing before a number makes it part of something larger."""
    words = before.rstrip()
    opened = words.rstrip("*_\"'“‘`([{")
    if opened[-1:].isalnum() and words[len(opened) :].strip("*_\"'“‘`"):
        return False  # f(5), \sqrt{16}
    is_apart = opened.rstrip() != before or not opened
    words = opened.rstrip()
    if words.endswith((",", ";")) and any(before.count(one) > before.count(other) for one, other in ("()", "[]", "{}")):
        return False  # (3, 5)
    if not words or words.endswith(("=>", "->", "|>")):
        return True
    if words[-1] in "=:≈~#.,;!?":
        return not words.endswith((">=", "<=", "!="))
    if not is_apart or (number[0] in "-+" and number[1:2].isspace()):
        return False
    return _WORD_BEFORE.search(words[-32:]) is not None


def _value(found: re.Match[str]) -> Exact | None:
    sign, whole, digits, exponent, denominator = found.groups()
    if len(digits) + len(denominator or "") + len(whole or "") + abs(int(exponent or "0")) > _MAX_DIGITS:
        return None
    digits = digits.replace(",", "").replace(" ", "")
    if "." not in digits and not denominator and not exponent:
        return -int(digits) if sign == "-" else int(digits)
    divisor = int(denominator or "1")
    if divisor == 0:
        return None
    value = Fraction(digits) / divisor + int(whole or "0")
    if exponent:
        value *= Fraction(10) ** int(exponent)
    value = value if value.denominator > 1 else Fraction(value.numerator)
    return -value if sign == "-" else value
