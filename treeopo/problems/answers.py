"""Where a solution states its final answer: after `####`, in `\\boxed{}`, after "the answer is". The last one counts.

Everything here is a search from the end of a bounded tail: linear, nothing is evaluated, no pattern backtracks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

ANSWER_MARK = "####"

TAIL_CHARS = 16_384
"""An answer further from the end of a solution than this is not found."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_INNER_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{([^{}]*)\}")
_MAX_BOXES = 32
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"(?!\\[A-Za-z]*\s)(?:[-+.(]?[0-9\\]|[A-Za-z]\s*[$=])[^\s$]*")  # what a \boxed without braces holds
_SAYS_NOTHING = re.compile(
    r"(?:\s|[._…?~]|\\[,;:! _]|\\(?:[lc]?dots|q?quad|square)(?![A-Za-z])|\{\})*"
    r"(?:\\text\s*\{)?\s*(?i:(?:(?:your|the|my)\s+)?(?:final\s+)?(?:answer|result|solution))?(?:\s+here)?\s*\}?"
)
_JOINT_DRESS = re.compile(r"\\text\s*\{([^{}]*)\}|\\[()\[\],;: ]|\\q?quad|[$*]|\s+")
_JOINTS = {",", ";", "and", "or", ",and", ",or", ";and", ";or", "&"}
_CLAIM = re.compile(r"(?:nswer|NSWER)[sS]?[*_]{0,3}\s?(?:(?P<is>(?:is|are|IS|ARE)(?![A-Za-z'’]))|[:=])")
_BEGINS_LINE = re.compile(r"[\s*_#>-]*(?:(?:the|my|our)\s+)?(?:final\s+)?a", re.IGNORECASE)
_DIGIT = re.compile("[0-9]")
_LEAD = re.compile(r"[ \t\xa0:*_=]*")
_MAX_CLAIMS = 16
_CLAIM_CHARS = 512


def tail(text: str) -> str:
    """The part of a solution in which its answer is looked for."""
    return text[-TAIL_CHARS:]


@dataclass(frozen=True, slots=True)
class Boxed:
    """The last box that says something, at `position`, or all boxes of the list in whose sentence it stands.

    contents: what they hold, in order; none where the last one is never closed.
    """

    position: int
    contents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """An "answer is ..." (or "Answer: ...", not `is_sentence`) at `position`, and what follows it."""

    position: int
    rest: str
    is_sentence: bool


def last_boxed(text: str, after: int = 0) -> Boxed | None:
    """The last `\\boxed{...}` or `\\fbox{...}` of a text, with those of the same list before it; None without one.
    `after`: from where in the text.

    An empty one, one that holds dots ("put it in \\boxed{...}") and a `\\boxed` that is only spoken of say nothing.
    `\\boxed{3}, \\boxed{5} and \\boxed{7}` is one list; boxes with anything else between them are several answers.
    """
    if text.find("\\boxed", after) < 0 and text.find("\\fbox", after) < 0:
        return None
    boxes = _boxes(text, after)
    while boxes and boxes[-1][2] is not None and _is_empty(boxes[-1][2]):
        boxes.pop()
    if not boxes:
        return None
    last = boxes.pop()
    if last[2] is None:
        return Boxed(last[0], ())
    listed = [last]
    for box in reversed(boxes):
        if box[2] is None or _is_empty(box[2]) or not _joins(text[box[1] : listed[-1][0]]):
            break
        listed.append(box)
    return Boxed(last[0], tuple(dict.fromkeys((content or "").strip() for _, _, content in reversed(listed))))


def is_balanced(latex: str) -> bool:
    """Every brace is closed: only such text can be put into a `\\boxed{}` of our own."""
    depth = 0
    for brace in _BRACES.findall(latex):
        depth += (brace == "{") - (brace == "}")
        if depth < 0:
            return False
    return depth == 0 and (len(latex) - len(latex.rstrip("\\"))) % 2 == 0


def claims(text: str, after: int) -> Iterator[Claim]:
    """Each "answer is", and "Answer:" that begins a line, beyond `after`, the last one first; at most 16 of them. What
    follows ends with its line.
    """
    end = len(text)
    for _ in range(_MAX_CLAIMS):
        end = max(text.rfind("nswer", after, end), text.rfind("NSWER", after, end))
        if end < 0:
            return
        found = _CLAIM.match(text, end)
        if found is not None and (found["is"] or _BEGINS_LINE.fullmatch(text, text.rfind("\n", 0, end) + 1, end)):
            yield Claim(end, _rest(text, found), found["is"] is not None)


def last_mark(text: str) -> int:
    """Where the last `####` stands that says something; -1 without one. One that is only spoken of ("I put it after
    ####") or that nothing follows says nothing.
    """
    end = len(text)
    while (end := text.rfind(ANSWER_MARK, 0, end)) >= 0:
        rest = text[end + len(ANSWER_MARK) : end + _CLAIM_CHARS].strip(" `*\"'")
        begins_line = end == 0 or text[end - 1] == "\n" or not text[text.rfind("\n", 0, end) + 1 : end].strip(" #*")
        if rest and not rest.isspace() and (begins_line or _DIGIT.search(rest.partition("\n")[0])):
            return end
    return -1


def _rest(text: str, claim: re.Match[str]) -> str:
    """What a claim says: of its own line, or where that is empty and the claim stands out, of the next."""
    begin = claim.end()
    rest = text[begin : begin + _CLAIM_CHARS]
    lead = _LEAD.match(rest)
    rest = rest[lead.end() :] if lead else rest
    stands_out = claim["is"] or "*" in text[max(0, claim.start() - 12) : begin + 3]
    is_final = text[max(0, claim.start() - 7) : claim.start()].lower().startswith("final")
    if rest.startswith("\n") and (stands_out or is_final):
        rest = rest.lstrip().lstrip("*_")
    return rest if rest.startswith(("\\[", "$$")) else rest.partition("\n")[0]


def _boxes(text: str, after: int) -> list[tuple[int, int, str | None]]:
    """Begin, end and content of the last boxes that are in no other; None: never closed, empty: only spoken of."""
    starts = list(_BOX.finditer(text, after))[-_MAX_BOXES:]
    closing, open_braces = {}, []
    for brace in _BRACES.finditer(text, starts[0].start()) if starts else ():
        if brace[0] == "{":
            open_braces.append(brace.start())
        elif brace[0] == "}" and open_braces:
            closing[open_braces.pop()] = brace.start()
    boxes: list[tuple[int, int, str | None]] = []
    for start in starts:
        begin, end = start.start(), start.end()
        if boxes and begin < boxes[-1][1] and boxes[-1][2] is not None:
            continue
        if text[end : end + 1] == "{":
            close = closing.get(end)
            boxes.append((begin, end, None) if close is None else (begin, close + 1, _opened(text[end + 1 : close])))
        else:
            bare = _BARE.match(text, end)
            boxes.append((begin, bare.end() if bare else end, bare[0] if bare else ""))
    return boxes


def _opened(content: str) -> str:
    """The content of a box without boxes of its own."""
    while _BOX.search(content):
        plainer = _INNER_BOX.sub(lambda found: found[1], content)
        if plainer == content:
            return _BOX.sub("", content)  # what stands in braces is a group of its own
        content = plainer
    return content


def _is_empty(content: str | None) -> bool:
    return content is not None and len(content) <= 64 and _SAYS_NOTHING.fullmatch(content) is not None


def _joins(between: str) -> bool:
    if len(between) > 40 or "\n\n" in between:
        return False
    return _JOINT_DRESS.sub(lambda found: (found[1] or "").strip(), between) in _JOINTS
