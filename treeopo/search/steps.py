"""Where one step ends and the next begins, in the tokens the teacher produced."""

from collections.abc import Sequence
from typing import NamedTuple

from treeopo.ports import Tokenize

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a token that holds part of a character decodes to on its own."""


class Steps(NamedTuple):
    """The steps of one completion: `ends` (exclusive) of those that a step follows or may follow, the last one's `end`.

    answered: the last step holds the final answer; what the teacher wrote after it is left out.
    """

    ends: list[int]
    end: int
    answered: bool


class StepSplitter:
    """Finds the ends of steps; one splitter may serve many searches, as it remembers what it learnt of each token.

    An empty `answer_mark` recognises no final answer.
    """

    def __init__(self, tokenize: Tokenize, separator: str, answer_mark: str) -> None:
        self._tokenize = tokenize
        self._separator = separator
        self._answer_mark = answer_mark
        self._may_complete: dict[int, bool] = {}  # by token; decoding each anew would cost more than the search

    def split(self, token_ids_T: Sequence[int]) -> Steps:
        """Cut tokens into steps.

        A step ends with the token in which the separator's text completes, and the next separator is looked for after
        that token: nothing is tokenised again, so the ids of a prefix are exactly those the teacher saw. A token that
        brings more than the separator ("\\n\\n\\n", or "\\n\\nSo") belongs to the step that it ends. Separators and
        white space alone are no step: they belong to the one before them, or where a completion begins with them to the
        one after.
        """
        ends: list[int] = []
        start, length = 0, len(token_ids_T)
        for end, token in enumerate(token_ids_T, 1):
            if not self._can_end_a_step(token):
                continue
            step = self._tokenize.decode(list(token_ids_T[start:end]))
            if self._separator not in step:
                continue
            if self._answer_mark and self._answer_mark in step:
                return Steps(ends, end, answered=True)
            start = end
            if ends and self.is_blank(step):
                ends[-1] = end
            elif end == length or not self.is_blank(step):
                ends.append(end)
        return Steps(ends, length, answered=False)

    def is_blank(self, text: str) -> bool:
        """Whether a text holds separators and white space alone."""
        return not text.replace(self._separator, "").strip()

    def _can_end_a_step(self, token: int) -> bool:
        """The separator completes only in a token that holds its last character, or a part of it."""
        known = self._may_complete.get(token)
        if known is None:
            piece = self._tokenize.decode([token])
            known = self._may_complete[token] = self._separator[-1] in piece or BROKEN in piece
        return known
