"""Where one step ends and the next begins, in the tokens the teacher produced."""

from collections.abc import Sequence

from treeopo.ports import Tokenize

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a token that holds part of a character decodes to on its own."""


def step_ends(token_ids_T: Sequence[int], tokenize: Tokenize, separator: str) -> list[int]:
    """Ends (exclusive) of the steps that the separator completes; a last step that it does not complete has none.

    A step ends with the token in which the separator's text completes, and the next separator is looked for after that
    token: nothing is tokenised again, so the ids of a prefix are exactly those the teacher saw. A token that brings
    more than the separator ("\\n\\n\\n", or "\\n\\nSo") belongs to the step that it ends.
    """
    ends: list[int] = []
    start = 0
    for end, token in enumerate(token_ids_T, 1):
        piece = tokenize.decode([token])
        # The separator can only complete in a token that holds its last character: decode the step for those alone.
        may_complete = separator[-1] in piece or BROKEN in piece
        if may_complete and separator in tokenize.decode(list(token_ids_T[start:end])):
            ends.append(end)
            start = end
    return ends
