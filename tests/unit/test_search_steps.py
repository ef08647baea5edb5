"""Steps are cut at tokens: no token is split, none is made anew."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from treeopo.engines.scripted import CharTokenizer
from treeopo.search.steps import Steps, StepSplitter


class PieceTokenizer:
    """Token i is the i-th byte string, so that one token can hold several characters or part of one."""

    eos_token_id = 0
    end_token_ids = frozenset({0})

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def encode(self, text: str) -> list[int]:
        raise AssertionError("the search must never tokenise text again")

    def decode(self, token_ids: list[int]) -> str:
        return b"".join(self.pieces[token] for token in token_ids).decode(errors="replace")


def test_a_step_ends_with_the_token_that_completes_the_separator() -> None:
    tokenize = PieceTokenizer(b"", b"a", b"\n", b"\n\n", b".\n\nb")
    assert StepSplitter(tokenize, "\n\n", "").split([1, 2, 2, 1, 3, 1, 4, 1]).ends == [3, 5, 7]


def test_characters_after_the_separator_stay_with_the_step_that_their_token_ends() -> None:
    tokenize = PieceTokenizer(b"", b"a", b"\n\n\n", b"\n")
    assert StepSplitter(tokenize, "\n\n", "").split([1, 2, 3, 1]).ends == [2]


def test_a_separator_whose_bytes_are_split_between_tokens_is_found() -> None:
    arrow = "→".encode()
    tokenize = PieceTokenizer(b"", b"a", arrow[:2], arrow[2:])
    assert StepSplitter(tokenize, "→", "").split([1, 2, 3, 1]).ends == [3]


def test_a_splitter_decodes_a_token_on_its_own_only_once() -> None:
    class Counting(CharTokenizer):
        decoded = 0

        def decode(self, token_ids: list[int]) -> str:
            self.decoded += 1
            return super().decode(token_ids)

    tokenize = Counting()
    splitter = StepSplitter(tokenize, "\n\n", "")
    for _ in range(100):
        splitter.split(tokenize.encode("abc" * 100))
    assert tokenize.decoded == 3


def test_a_step_that_is_not_completed_has_no_end() -> None:
    assert StepSplitter(CharTokenizer(), "\n\n", "").split(CharTokenizer().encode("abc\n")).ends == []


@given(st.lists(st.sampled_from([1, 2, 3, 4]), max_size=20))
def test_every_step_holds_the_separator_in_its_last_token_and_before_that_in_blank_lines_alone(
    token_ids: list[int],
) -> None:
    tokenize = PieceTokenizer(b"", b"a", b"\n", b"\n\n", b"x\n")
    ends = StepSplitter(tokenize, "\n\n", "").split(token_ids).ends
    for start, end in pairwise([0, *ends]):
        assert "\n\n" in tokenize.decode(token_ids[start:end])
        assert "\n\n" not in tokenize.decode(token_ids[start : end - 1]).strip()
        assert tokenize.decode(token_ids[start:end]).strip() or end == len(token_ids)
    assert "\n\n" not in tokenize.decode(token_ids[ends[-1] if ends else 0 :]).strip()


def test_nothing_after_the_step_with_the_answer_mark_counts() -> None:
    tokens = CharTokenizer().encode("a;# 1;b;# 2;")
    assert StepSplitter(CharTokenizer(), ";", "#").split(tokens) == Steps([2], 6, answered=True)
    assert StepSplitter(CharTokenizer(), ";", "").split(tokens) == Steps([2, 6, 8, 12], 12, answered=False)


def test_an_answer_that_the_separator_does_not_complete_may_still_be_growing() -> None:
    tokens = CharTokenizer().encode("a;# 1")
    assert StepSplitter(CharTokenizer(), ";", "#").split(tokens) == Steps([2], 5, answered=False)
