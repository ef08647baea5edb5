"""Stop strings as stop tokens: vLLM then ends a request by itself, and nobody makes text of each token to find them."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Ending(NamedTuple):
    """How many tokens a completion has, their text up to the end of a stop string, and whether there is one."""

    length: int
    text: str
    stopped: bool


class StopTokens:
    """The tokens of a vocabulary that hold a stop string; `tokenizer` is transformers'.

    A string may also complete across tokens that do not hold it. Such a request goes on to its next stop token or its
    limit, and `end` finds where it was to stop: the result is the same, only later.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple[str, ...], list[int]] = {}

    def holding(self, stop: tuple[str, ...]) -> list[int]:
        """Tokens whose own text holds one of the strings; none unless each string has such a token."""
        if stop and stop not in self._known:
            pieces = self._decode_all()  # a vocabulary of text, once for the strings of a run
            found = [[token for token, piece in enumerate(pieces) if string in piece] for string in stop]
            self._known[stop] = sorted({token for tokens in found for token in tokens}) if all(found) else []
        return self._known.get(stop, [])

    def end(self, token_ids: Sequence[int], stop: tuple[str, ...]) -> Ending:
        """Where a completion with these stop strings ends: with the token that completes the first of them."""
        text = self.decode(token_ids)
        ends = [text.index(string) + len(string) for string in stop if string in text]
        if not ends:
            return Ending(len(token_ids), text, stopped=False)
        length = len(token_ids)
        while length and any(string in self.decode(token_ids[: length - 1]) for string in stop):
            length -= 1
        return Ending(length, text[: min(ends)], stopped=True)

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _decode_all(self) -> list[str]:
        return list(
            self._tokenizer.batch_decode(
                [[token] for token in range(len(self._tokenizer))],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
        )
