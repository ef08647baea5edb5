"""LaTeX that a solution states as its answer: read whole out of a sentence or not at all, and put into one spelling."""

import re
from decimal import Decimal

from treeopo.problems.answers import Claim, is_balanced
from treeopo.problems.numbers import KEEPS_VALUE, UNITS, leading_number, plain

_SEGMENT = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$((?:\\\$|[^$\n])+)(?<!\\)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)",
    re.DOTALL,
)
_JOINT = re.compile(r"\s*(?:(?:,\s*)?(?:and|or)\s+|[,;]\s*|(:)\s*)")
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}")  # two of them are prose, in dollars or not
_TEXT_COMMAND = r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox|operatorname\*?)\s*\{[^{}]*\}"
_MATH = re.compile(
    rf"(?:{_TEXT_COMMAND}|\\(?:begin|end)\s*\{{[a-z]+\*?\}}|\\[A-Za-z]+|\\[,;:! {{}}%|$\\]"
    r"|[0-9]+(?:\.[0-9]+)?(?!\.[0-9])|\.[0-9]+|[A-Za-zπ](?![A-Za-z])"
    r"|(?:sin|cos|tan|log|ln|sqrt|pi)(?![A-Za-z])|[-+*/^_=<>!|&()\[\]{}'°%×÷·√∞≤≥≠±−²³½]|[,:;](?=\s*[-+\d\\(A-Za-z])"
    r"|\s+(?=\S)|(?:and|or)\s+(?=[-+]?[\d\\(.]))+"
)
_MAYBE_MATH = re.compile(
    r"[-+−(\[{.|]*\s*(?:[0-9]|\\[A-Za-z{]|√)|\([A-Za-z]\s*[-+*/^]"
    r"|[A-Za-z]\s*(?:[=^+*/<>_-]|\\(?:in|le|ge|ne)q?\b)"
)
_UNIT_AS_TEXT = re.compile(rf"\s*[-+−]?[0-9][0-9.,]*\s*({_TEXT_COMMAND}(?:\^\s*\{{?\s*[23]\s*\}}?)?)")
_OPEN_END = re.compile(r"[-+*/^_=<>,:;×÷·−]$|\\(?:cdot|times|le|ge|leq|geq|cup|cap|pm|in|frac|sqrt)$")
_HALF_MIXED = re.compile(r"^[0-9]+ and [1-9][0-9]*/[1-9][0-9]*$")  # 5 and 1/2: a list, or a mixed number
_ARTICLE = re.compile(r"\s+[aAI]$")
_STATED = re.compile(r"[-+−.(]*\s*(?:[0-9$]|\\(?!boxed|fbox)[(\[A-Za-z{$])(?!\\boxed|\\fbox)")
_AFTER = re.compile(
    rf"(?:{UNITS})?[\"'”’)*_`$]*(?:\s*$|\.(?!\.*[0-9]|\.)|[?,;:](?!\s*[-+.]*[0-9$\\])|\s+[\"'“‘`*_]*{KEEPS_VALUE}[^\W\d_]"
    r"|\s+(?!\(mod\b)[(\u2013\u2014-]+\s*[^\W\d_]{2}|\s*<(?:[|/])|[。，、])"
)
_MORE = re.compile(r"[0-9$\\]")
_PERCENT = re.compile(r"\s*(?:\\?%|percent\b)")
_CURRENCY = re.compile(r"^\\?\$\s*(?=[0-9.])")

_MINUS = str.maketrans({"\N{MINUS SIGN}": "-", "\N{HYPHEN}": "-", "\xa0": " ", "\u2009": " ", "\u202f": " "})
_SEPARATOR = r"(?:\{,\}|,\\!|\\!,|\\!|\\[,;: ]|\\thinspace\s?|[ ~'’])"
_THOUSANDS = re.compile(rf"(?<![0-9.,^_'])([1-9][0-9]{{0,2}})((?:{_SEPARATOR}[0-9]{{3}})+)(?![0-9'])")
_GROUPED = re.compile(r"(?:\\?\$)?[-+]?(?:\\?\$)?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?\.?")
_MIXED = re.compile(r"(?<![0-9.}^_/])([0-9]+)(?:\s|\\[,;: ])+([1-9][0-9]*)/([1-9][0-9]*)(?![0-9/.])")
_NUMBER_AS_TEXT = re.compile(r"\\(?:text(?:bf)?|math(?:bf|rm))\s*\{\s*([-+]?[0-9][0-9.,]*)\s*\}")
_SCIENTIFIC = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))[eE]([-+]?[0-9]{1,4})")
_HEXADECIMAL = re.compile(r"[-+]?0[xXbBoO][0-9A-Fa-f]+")
_LOOKS = (("\\left", ""), ("\\right", ""), ("\\!", ""), ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"))
_BLANK = re.compile(r"(?<![0-9]) +| +(?![0-9])")


def claimed_latex(claim: Claim) -> str | None:
    """The LaTeX that a claim states; None where it is prose, empty where it states what cannot be read whole.

    Read are LaTeX between dollars, `\\(...\\)` or `\\[...\\]`, several of them joined by "and", "or", a comma or a
    colon, and a bare number or expression up to the first word, if what follows leaves it as it is.
    """
    rest = claim.rest
    found = _segments(rest) or _bare(rest)
    if found is not None:
        latex, after = found
        if "\\boxed" in latex or "\\fbox" in latex:
            return None  # one that says nothing
        if latex and is_balanced(latex) and (claim.is_sentence or not _MORE.search(after)):
            return latex
    return "" if claim.is_sentence and _STATED.match(rest) else None


def normal(latex: str) -> str:
    """`latex` with its numbers as algebra reads them: no thousands separators, `3 1/2` and `2e5` written out."""
    latex = _NUMBER_AS_TEXT.sub(r"\1", latex.translate(_MINUS)).strip()
    if _GROUPED.fullmatch(latex):
        return latex.replace(",", "")
    scientific = _SCIENTIFIC.fullmatch(latex)
    if scientific:
        return _written_out(scientific[1], int(scientific[2]))
    latex = _MIXED.sub(r"\1\\frac{\2}{\3}", latex)
    return _THOUSANDS.sub(lambda found: found[1] + re.sub(_SEPARATOR, "", found[2]), latex)


def spelling(latex: str) -> str:
    """One spelling of LaTeX that differs only in looks."""
    latex = normal(latex)
    for one, other in _LOOKS:
        latex = latex.replace(one, other)
    latex = _BLANK.sub("", latex).strip("$\n")
    return latex[:-1].rstrip("$") if latex.endswith(".") else latex


def is_hexadecimal(latex: str) -> bool:
    """A number as programs write it, which LaTeX would read as a product (0x10 is 0 times x times 10)."""
    return _HEXADECIMAL.fullmatch(latex.strip()) is not None


def _written_out(digits: str, exponent: int) -> str:
    if abs(exponent) > 32:
        return f"{digits}\\cdot 10^{{{exponent}}}"
    return f"{Decimal(digits).scaleb(exponent):f}"


def _segments(rest: str) -> tuple[str, str] | None:
    """Segments of LaTeX that `rest` begins with as one (empty if that cannot be read), and what follows them."""
    found = _SEGMENT.match(rest)
    if found is None or _WORDS.search(next(filter(None, found.groups()), "")):
        return None
    latex, end = _content(found), found.end()
    while (joint := _JOINT.match(rest, end)) and (found := _SEGMENT.match(rest, joint.end())):
        latex, end = f"{latex}{joint[1] or ','}{_content(found)}", found.end()
    if percent := _PERCENT.match(rest, end):
        latex, end = latex + "\\%", percent.end()
    return (latex if _AFTER.match(rest, end) else ""), rest[end:]


def _content(segment: re.Match[str]) -> str:
    return next(filter(None, segment.groups()), "").strip().rstrip(".,")


def _bare(rest: str) -> tuple[str, str] | None:
    """The number or expression that `rest` begins with (empty if it cannot be read whole), and what follows it."""
    rest = rest.replace("**", "").replace("__", "")
    line = plain(rest)
    number = leading_number(line)
    if number is not None:
        digits, after = line[number.begin : number.end], line[number.end :]
        if unit := _UNIT_AS_TEXT.match(rest):
            return digits + unit[1], after
        return digits + ("\\%" if _PERCENT.match(after) else ""), after
    rest = _CURRENCY.sub("", rest)
    if not _MAYBE_MATH.match(rest):
        return None
    head = _MATH.match(rest)
    if head is None:
        return None
    latex = _ARTICLE.sub("", head[0].rstrip()).rstrip(",:; ")
    after = rest[len(head[0].rstrip()) :]
    if _OPEN_END.search(latex) or _HALF_MIXED.search(latex) or not _AFTER.match(after):
        return "", after
    return re.sub(r"\s*(?:,\s*)?\b(?:and|or)\s+", ", ", latex), after
