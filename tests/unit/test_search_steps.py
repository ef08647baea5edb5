"""Steps are cut at tokens: no token is split, none is made anew."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from treeopo.engines.scripted import CharTokenizer
from treeopo.search.steps import step_ends


class PieceTokenizer:
    """Token i is the i-th byte string, so that one token can hold several characters or part of one."""

    eos_token_id = 0

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def encode(self, text: str) -> list[int]:
        raise AssertionError("the search must never tokenise text again")

    def decode(self, token_ids: list[int]) -> str:
        return b"".join(self.pieces[token] for token in token_ids).decode(errors="replace")


def test_a_step_ends_with_the_token_that_completes_the_separator() -> None:
    tokenize = PieceTokenizer(b"", b"a", b"\n", b"\n\n", b".\n\nb")
    assert step_ends([1, 2, 2, 1, 3, 1, 4, 1], tokenize, "\n\n") == [3, 5, 7]


def test_characters_after_the_separator_stay_with_the_step_that_their_token_ends() -> None:
    tokenize = PieceTokenizer(b"", b"a", b"\n\n\n", b"\n")
    assert step_ends([1, 2, 3, 1], tokenize, "\n\n") == [2]


def test_a_separator_whose_bytes_are_split_between_tokens_is_found() -> None:
    arrow = "→".encode()
    tokenize = PieceTokenizer(b"", b"a", arrow[:2], arrow[2:])
    assert step_ends([1, 2, 3, 1], tokenize, "→") == [3]


def test_a_step_that_is_not_completed_has_no_end() -> None:
    assert step_ends(CharTokenizer().encode("abc\n"), CharTokenizer(), "\n\n") == []


@given(st.lists(st.sampled_from([1, 2, 3, 4]), max_size=20))
def test_every_step_holds_the_separator_in_its_last_token_and_not_before(token_ids: list[int]) -> None:
    tokenize = PieceTokenizer(b"", b"a", b"\n", b"\n\n", b"x\n")
    ends = step_ends(token_ids, tokenize, "\n\n")
    for start, end in pairwise([0, *ends]):
        assert "\n\n" in tokenize.decode(token_ids[start:end])
        assert "\n\n" not in tokenize.decode(token_ids[start : end - 1])
    assert "\n\n" not in tokenize.decode(token_ids[ends[-1] if ends else 0 :])
