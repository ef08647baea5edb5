"""Where one step ends and the next begins, in the tokens the teacher produced."""

from collections.abc import Sequence

from treeopo.ports import Tokenize

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a token that holds part of a character decodes to on its own."""


class StepSplitter:
    """Finds the ends of steps; one splitter may serve many searches, as it remembers what it learnt of each token."""

    def __init__(self, tokenize: Tokenize, separator: str) -> None:
        self._tokenize = tokenize
        self._separator = separator
        self._may_complete: dict[
            int, bool
        ] = {}  # by token id: decoding every token anew would cost more than the search

    def ends(self, token_ids_T: Sequence[int]) -> list[int]:
        """Ends (exclusive) of the steps that the separator completes; a last step without it has none.

        A step ends with the token in which the separator's text completes, and the next separator is looked for after
        that token: nothing is tokenised again, so the ids of a prefix are exactly those the teacher saw. A token that
        brings more than the separator ("\\n\\n\\n", or "\\n\\nSo") belongs to the step that it ends.
        """
        ends: list[int] = []
        start = 0
        for end, token in enumerate(token_ids_T, 1):
            if self._can_end_a_step(token) and self._separator in self._tokenize.decode(list(token_ids_T[start:end])):
                ends.append(end)
                start = end
        return ends

    def _can_end_a_step(self, token: int) -> bool:
        """The separator completes only in a token that holds its last character, or a part of it."""
        known = self._may_complete.get(token)
        if known is None:
            piece = self._tokenize.decode([token])
            known = self._may_complete[token] = self._separator[-1] in piece or BROKEN in piece
        return known
