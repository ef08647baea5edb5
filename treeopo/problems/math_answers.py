"""Final answers of MATH: finding the LaTeX, and telling apart what needs no computer algebra.

What is settled here takes microseconds; the rest is math-verify's, in a process that can be killed (`grading_pool`).
"""

import re

from treeopo.problems.answers import BOXED, boxed_at, claims, is_balanced, tail

MAX_ANSWER_CHARS = 512
"""Longer answers are wrong: no published gold has a third of this, and parsing LaTeX is slower than linear."""

_INTEGER = re.compile(r"[-+]?[0-9]{1,64}")
_CLAIMED = re.compile(r"[\s:*]*(?:\$([^$]+)\$|\\\(([^$]+?)\\\)|([-+]?[0-9]+(?:\.[0-9]+)?(?:/[0-9]+)?)(?![0-9,/^*]))")
_SPELLINGS = (("\\left", ""), ("\\right", ""), ("\\!", ""), ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), (" ", ""))


def math_answer(text: str) -> str | None:
    """The LaTeX of the last `\\boxed{}` or "answer is $...$" of a solution, whichever stands later.

    A `\\boxed{` that is never closed is no answer, whatever stands before it. After "answer is" LaTeX between dollars
    or `\\(...\\)`, or a bare number, is read; anything else is prose.
    """
    text = tail(text)
    boxed = text.rfind(BOXED)
    for position, rest in claims(text):
        if position < boxed:
            break
        found = _CLAIMED.match(rest)
        latex = next(filter(None, found.groups()), "").strip() if found else ""
        if latex and BOXED not in latex and is_balanced(latex):
            return latex
    content = None if boxed < 0 else boxed_at(text, boxed)
    return content.strip() if content and content.strip() else None


def quick_verdict(gold: str, answer: str) -> bool | None:
    """Whether the answer is right, where its spelling alone tells; None where it takes algebra."""
    if len(answer) > MAX_ANSWER_CHARS:
        return False
    gold, answer = _spelling(gold), _spelling(answer)
    if gold == answer:
        return True
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):
        return int(gold) == int(answer)
    return None


def spelled_answer(text: str) -> str:
    """`math_answer` in one spelling of the LaTeX that differs only in looks; empty where there is none."""
    answer = math_answer(text)
    return "" if answer is None else _spelling(answer[:MAX_ANSWER_CHARS])


def _spelling(latex: str) -> str:
    for one, other in _SPELLINGS:
        latex = latex.replace(one, other)
    return latex.strip("$.\n")
