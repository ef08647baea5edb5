"""Stop strings are looked for as tokens where tokens hold them; a completion ends where it would have by its text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

from treeopo.engines.stops import StopTokens

MERGES = [("Ċ", "Ċ"), (".", "ĊĊ")]  # "\n\n" and ".\n\n", as Qwen2 has them
ALPHABET = sorted(ByteLevel.alphabet())
PIECES = [*ALPHABET, "ĊĊ", ".ĊĊ", "<|endoftext|>"]
TOKENIZER = Qwen2Tokenizer(vocab={piece: token for token, piece in enumerate(PIECES)}, merges=MERGES)
STOPS = StopTokens(TOKENIZER)
NEWLINE, TWO, DOT_TWO = (PIECES.index(piece) for piece in ("Ċ", "ĊĊ", ".ĊĊ"))


def test_the_tokens_that_hold_a_string_stop_at_it() -> None:
    assert STOPS.holding(("\n\n",)) == [TWO, DOT_TWO]
    assert STOPS.holding((".\n", "\n\n")) == [TWO, DOT_TWO]


@pytest.mark.parametrize("stop", [("Question:",), ("\n\n", "Question:")])
def test_a_string_that_no_token_holds_has_to_be_looked_for_in_the_text(stop: tuple[str, ...]) -> None:
    assert STOPS.holding(stop) == []


@given(
    token_ids=st.lists(st.sampled_from([NEWLINE, TWO, DOT_TWO, *(PIECES.index(c) for c in "ab.")]), max_size=12),
    stop=st.sampled_from([("\n\n",), (".\n", "\n\n"), ("a\n",), ()]),
)
def test_a_completion_ends_with_the_first_token_that_completes_a_string(
    token_ids: list[int], stop: tuple[str, ...]
) -> None:
    prefixes = [STOPS.decode(token_ids[:length]) for length in range(len(token_ids) + 1)]
    first = next((n for n, text in enumerate(prefixes) if any(string in text for string in stop)), None)
    length, text, stopped = STOPS.end(token_ids, stop)
    assert stopped == (first is not None)
    assert length == (len(token_ids) if first is None else first)
    if first is None:
        assert text == prefixes[-1]
    else:
        assert prefixes[first].startswith(text)
        assert text.endswith(stop)
        assert not any(string in text[:-1] for string in stop)


def test_a_string_completed_across_tokens_is_found_behind_later_ones() -> None:
    token_ids = [PIECES.index("a"), NEWLINE, NEWLINE, PIECES.index("b"), TWO]
    assert STOPS.end(token_ids, ("\n\n",)) == (3, "a\n\n", True)
