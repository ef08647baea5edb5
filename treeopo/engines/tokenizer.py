"""The tokenizer of a model directory or hub name as the `Tokenize` port."""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from treeopo_storage.joint import Encoded

from treeopo.errors import ModelError

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

_NONE: Mapping[str, Any] = MappingProxyType({})
_TAKEN = ("messages", "bos_token", "eos_token", "add_generation_prompt", "tools", "documents")
"""Names in templates that are not for a user to set here."""

_BEFORE = ("\n", ".", "0", "a")
"""What a text may be encoded after so that it gets no space of its own: the first whose tokens end where it does."""

_AFTER = "a"
"""What a text that ends in white space is encoded before, for it will be gone on with."""

_ESCAPE = "\ufdd0"
"""Takes the meaning of a special token's name from the character after it; Unicode keeps it out of real texts."""


class ModelTokenizer:
    """transformers' fast tokenizer. Special tokens are added where a sequence begins (`begin`) and nowhere else, and
    are not shown on the way out. The name of a special token inside a text is that token only where the text is not
    `escape`d, as in a prompt template.

    A text that ends in white space has the tokens that it has before a word, where one ends with the text: GPT-2's
    rules, which SmolLM2's are, make one token of a blank line at the end of a text and two of one before a word. After
    the one a model expects anything but a word.

    Raises:
        ModelError: the tokenizer cannot be loaded, is not a fast one, or has no end-of-text token.
    """

    def __init__(self, model: str, trust_remote_code: bool = False, *, weights: str | None = None) -> None:
        """weights: the model that it speaks for, where that is another (the base of an adapter with a tokenizer)."""
        from transformers import AutoTokenizer

        self._weights, self._trust_remote_code = weights or model, trust_remote_code
        try:
            self.hf: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if not _HUB_NAME.fullmatch(model) and not Path(model).is_dir():
                seen_from = "" if Path(model).is_absolute() else f", seen from {Path.cwd()}"
                reason = f"there is no such directory{seen_from}"
            raise ModelError(f"no tokenizer for {model!r}: {reason}") from None
        if not self.hf.is_fast or self.hf.eos_token_id is None:
            raise ModelError(f"the tokenizer of {model!r} must be a fast one with an end-of-text token")

    @property
    def eos_token_id(self) -> int:
        return int(self.hf.eos_token_id)

    @cached_property
    def vocabulary_size(self) -> int:
        """Ids that there may be: those of the tokenizer, or as many as the model has logits if it has more.

        Heads are padded (Qwen2.5: 151,936 rows for 151,665 tokens). An engine of treeopo's own samples no padding row;
        a server by URL does now and then, and older stores hold some: it is a token without text.
        """
        config = self._config
        return max(len(self.hf), int(getattr(config and config.get_text_config(), "vocab_size", None) or 0))

    @cached_property
    def _config(self) -> Any:
        """The model's, None beside a tokenizer that is there alone."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self._weights, trust_remote_code=self._trust_remote_code)
        except (OSError, ValueError):
            return None

    @property
    def fingerprint(self) -> str:
        """Equal for tokenizers that give the same ids for the same text: a hash of their whole definition."""
        definition = json.loads(self.hf.backend_tokenizer.to_str())
        definition["truncation"] = definition["padding"] = None
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:32]

    @cached_property
    def opening(self) -> list[int]:
        """What the tokenizer itself puts before a text (a beginning-of-text token); nothing where it adds nothing."""
        added, bare = self.hf.encode("a"), self.hf.encode("a", add_special_tokens=False)
        before = (n for n in range(len(added) - len(bare) + 1) if added[n : n + len(bare)] == bare)
        return list(added[: next(before, 0)])

    def begin(self, text: str) -> list[int]:
        """Token ids of a text that begins a sequence: `opening`, once, and the text's own.

        Raises:
            ModelError: the name of a special token was to be text, and the tokenizer cannot keep it so.
        """
        ids: list[int] = self._open(text, self._begin).ids.tolist()
        return ids

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that goes on after another: no special token, whatever the text names, and no space that
        the tokenizer puts before a text of its own.

        Raises:
            ModelError: as `begin`.
        """
        ids: list[int] = self.encode_after(text).ids.tolist()
        return ids

    def encode_solution(self, question: str, prompt: str, steps: str) -> Encoded:
        """See `TreeTokenizer`. Raises: ModelError: as `begin`."""
        asked = self.escape(question).join(prompt.split(question)) if question else prompt
        return self._begin(asked + self.escape(steps)) if steps else self._open(asked, self._begin)

    def encode_after(self, text: str) -> Encoded:
        """See `TreeTokenizer`. Raises: ModelError: as `begin`."""
        return self._open(text, self._after)

    def _after(self, text: str) -> Encoded:
        for before in _BEFORE if self._puts_space else ():
            encoded = self._encode(before + text, special=False)
            count = int(np.searchsorted(encoded.starts, len(before)))
            if count and encoded.ends[count - 1] <= len(before):
                return encoded.after(count, -len(before))
        return self._encode(text, special=False)

    def reads_as(self, token_ids: Sequence[int], text: str) -> bool:
        """See `TreeTokenizer`; special tokens of a prompt read as they are named."""
        ids, opening = list(token_ids), self.opening
        ended = bool(ids) and ids[-1] in self.end_token_ids
        parts = [
            ids[first:last]
            for first in {0, len(opening) if ids[: len(opening)] == opening else 0}
            for last in {len(ids), len(ids) - ended}
        ]
        wanted = {text, f" {text}"} if self._puts_space else {text}
        return any(self._decode(part) in wanted for part in parts)

    def reads(self, token_ids: Sequence[int]) -> str:
        """A sequence's text without `opening`, its special tokens by name."""
        count = len(self.opening) if list(token_ids[: len(self.opening)]) == self.opening else 0
        return self._decode(token_ids[count:])

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self.hf.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def escape(self, text: str) -> str:
        """`text` so that `begin` takes the names of special tokens in it for ordinary characters."""
        taken = re.compile(f"{_ESCAPE}|{self._special.pattern}")
        return taken.sub(lambda found: "".join(_ESCAPE + character for character in found[0]), text)

    def chat(self, messages: Sequence[Mapping[str, str]], chat_arguments: Mapping[str, Any] = _NONE) -> list[int]:
        """The messages under the tokenizer's chat template, up to where the assistant's next one begins. The special
        tokens are the template's; those that a message names are text. `chat_arguments`: what else it is told.

        Raises:
            ModelError: it has no chat template, or one that refuses these messages or names no such argument; or as
                `begin`.
        """
        if not any(self._special.search(message["content"]) for message in messages):
            ids: list[int] = self._render(messages, chat_arguments, tokenize=True, return_dict=False)
            return ids
        escaped = [{**message, "content": self.escape(message["content"])} for message in messages]
        tokens: list[int] = self._escaped(self._render(escaped, chat_arguments, tokenize=False)).ids.tolist()
        return tokens

    def show(self, messages: Sequence[Mapping[str, str]], chat_arguments: Mapping[str, Any] = _NONE) -> str:
        """What `chat` encodes, as text. Raises: ModelError: as `chat`."""
        text: str = self._render(messages, chat_arguments, tokenize=False)
        return text

    @cached_property
    def is_instruct(self) -> bool:
        """Whether the model ends a text where its chat template ends an answer: it was tuned to answer under it. (Base
        models come with a template too, and end elsewhere.)
        """
        return self._turn_end in self.end_token_ids

    def answer_ends(self, *, chat: bool) -> tuple[int, ...]:
        """Tokens that an answer may end in, the one to end it with first: under the chat template that which the
        template writes there, if the model stops at it (Gemma's `<end_of_turn>`); the end of text otherwise.
        """
        first = self._turn_end if chat and self._turn_end in self.end_token_ids else self.eos_token_id
        return (first, *sorted(self.end_token_ids - {first}))

    def end_after(self, prompt: str) -> list[int]:
        """The token that ends an answer to a prompt, which is under the chat template where it holds a turn's end."""
        turn = None if self._turn_end is None else self.hf.convert_ids_to_tokens(self._turn_end)
        return [self.answer_ends(chat=turn is not None and turn in prompt)[0]]

    @cached_property
    def _turn_end(self) -> int | None:
        """The special token that the chat template writes after an answer; None without one."""
        from jinja2 import TemplateError

        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ESCAPE}]
        try:
            shown = self.hf.apply_chat_template(turns, tokenize=False)
        except (ValueError, TemplateError):
            return None
        end = self._special.search(shown.rpartition(_ESCAPE)[2])
        return None if end is None else self._special_ids[end[0]]

    @cached_property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens at which the model stops, and vLLM with it: the tokenizer's, and those of its generation_config.json
        (of its config.json where there is none).
        """
        from transformers import GenerationConfig

        try:
            more = GenerationConfig.from_pretrained(self._weights).eos_token_id
        except (OSError, ValueError):
            more = getattr(self._config, "eos_token_id", None)
        return frozenset({self.eos_token_id, *([more] if isinstance(more, int) else more or [])})

    def _render(self, messages: Sequence[Mapping[str, str]], chat_arguments: Mapping[str, Any], **options: bool) -> Any:
        from jinja2 import TemplateError

        try:
            template = self.hf.get_chat_template()
            unknown = [name for name in chat_arguments if name in _TAKEN or name not in re.findall(r"\w+", template)]
            if not unknown:
                options |= {"add_generation_prompt": True, **chat_arguments}
                return self.hf.apply_chat_template(list(messages), chat_template=template, **options)
        except (ValueError, TemplateError) as error:
            raise ModelError(f"chat prompts: {str(error).splitlines()[0]}; use prompt.style plain") from None
        raise ModelError(f"prompt.chat_arguments: the model's chat template asks for no {unknown[0]!r}; leave it out")

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        added = self.hf.added_tokens_decoder.items()
        return {str(token): int(number) for number, token in added if token.special and str(token)}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Finds the names of special tokens, the longest first, as a tokenizer does."""
        names = sorted(self._special_ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    @cached_property
    def _backend(self) -> Any:
        """The Rust library's tokenizer, which adds nothing and shortens nothing."""
        backend = copy.deepcopy(self.hf.backend_tokenizer)
        backend.post_processor = None
        backend.no_truncation()
        backend.no_padding()
        return backend

    @cached_property
    def _puts_space(self) -> bool:
        """Whether a text of its own is encoded otherwise than after another, as Metaspace tokenizers do."""
        alone, after = self._encode("0", special=False).ids, self._encode("\n0", special=False).ids
        return not np.array_equal(alone, after[-1:])

    def _open(self, text: str, encode: Callable[[str], Encoded]) -> Encoded:
        """A text that is gone on with."""
        if not text[-1:].isspace():
            return encode(text)
        longer = encode(text + _AFTER)
        end = int(longer.ends[-1]) - len(_AFTER)
        count = int(np.searchsorted(longer.starts, end))
        return longer.first(count) if count and longer.ends[count - 1] <= end else encode(text)

    def _begin(self, text: str) -> Encoded:
        encoded, opening = self._escaped(text), np.array(self.opening, np.int32)
        if np.array_equal(encoded.ids[: len(opening)], opening):
            return encoded
        nowhere = np.zeros(len(opening), np.int64)
        return _joined([Encoded(opening, nowhere, nowhere), encoded])

    def _escaped(self, text: str) -> Encoded:
        """A text in which special tokens are named, and some names are escaped; offsets do not count the escapes."""
        if _ESCAPE not in text:
            return self._encode(text, special=True)
        parts: list[Encoded] = []
        plain, start = "", 0
        for piece in re.split(f"({_ESCAPE}.|{self._special.pattern})", text, flags=re.DOTALL):
            if piece not in self._special_ids:
                plain += piece.removeprefix(_ESCAPE)
                continue
            parts.append(self._encode(plain, special=False).after(0, start))
            start += len(plain)
            ends = np.array([start + len(piece)])
            parts.append(Encoded(np.array([self._special_ids[piece]], np.int32), ends - len(piece), ends))
            plain, start = "", start + len(piece)
        return _joined([*parts, self._encode(plain, special=False).after(0, start)])

    def _encode(self, text: str, *, special: bool) -> Encoded:
        """`text` alone, in which the names of special tokens are these tokens, or characters like any others."""
        self._backend.encode_special_tokens = not special
        found = self._backend.encode(text, add_special_tokens=False)
        for name in () if special else set(self._special.findall(text)):
            if self._special_ids[name] in found.ids and self._special_ids[name] != self.hf.unk_token_id:
                raise ModelError(f"{name!r} in a text is a special token that this tokenizer cannot keep as text")
        starts, ends = np.array(found.offsets, np.int64).reshape(-1, 2).T
        return Encoded(np.array(found.ids, np.int32), np.maximum.accumulate(starts), np.maximum.accumulate(ends))

    def decode(self, token_ids: list[int]) -> str:
        text: str = self.hf.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _joined(parts: Sequence[Encoded]) -> Encoded:
    """One text's parts, whose offsets are the text's."""
    return Encoded(*map(np.concatenate, zip(*parts, strict=True)))
