"""Where a solution states its final answer: after `####`, in `\\boxed{}`, after "the answer is". The last one counts.

Everything here is a search from the end of a bounded tail: linear, nothing is evaluated, no pattern backtracks.
"""

from collections.abc import Iterator

ANSWER_MARK = "####"
BOXED = "\\boxed"
ANSWER_IS = "nswer is"  # of "The answer is", "the final answer is", "Answer is"

TAIL_CHARS = 16_384
"""An answer further from the end of a solution than this is not found."""


def tail(text: str) -> str:
    """The part of a solution in which its answer is looked for."""
    return text[-TAIL_CHARS:]


def boxed_at(text: str, start: int) -> str | None:
    """What the `\\boxed{...}` (or `\\boxed 4`) that begins at `start` holds; None if it is not closed."""
    content = text[start + len(BOXED) :].lstrip()
    if not content.startswith("{"):
        return content.split("$")[0].split(None, 1)[0] if content.split("$")[0].strip() else None
    depth, escaped = 0, False
    for end, character in enumerate(content):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return content[1:end]
    return None


def last_boxed(text: str) -> str | None:
    """What the last `\\boxed{...}` of a text holds; None if there is none, or it is not closed."""
    start = text.rfind(BOXED)
    return None if start < 0 else boxed_at(text, start)


def is_balanced(latex: str) -> bool:
    """Every brace is closed: only such text can be put into a `\\boxed{}` of our own."""
    return boxed_at(f"{BOXED}{{{latex}}}", 0) == latex


def claims(text: str) -> Iterator[tuple[int, str]]:
    """Position and rest of line of each "answer is", the last one first; at most 16 of them."""
    end = len(text)
    for _ in range(16):
        end = text.rfind(ANSWER_IS, 0, end)
        if end < 0:
            return
        yield end, text[end + len(ANSWER_IS) : end + len(ANSWER_IS) + 512].partition("\n")[0]
