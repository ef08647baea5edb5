"""The tokenizer of a model directory or hub name as the `Tokenize` port."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from treeopo.errors import ModelError


class ModelTokenizer:
    """transformers' fast tokenizer, without special tokens added on the way in or shown on the way out.

    Raises:
        ModelError: the tokenizer cannot be loaded, is not a fast one, or has no end-of-text token.
    """

    def __init__(self, model: str, trust_remote_code: bool = False) -> None:
        from transformers import AutoTokenizer

        try:
            self.hf: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"no tokenizer for {model!r}: {reason}") from None
        if not self.hf.is_fast or self.hf.eos_token_id is None:
            raise ModelError(f"the tokenizer of {model!r} must be a fast one with an end-of-text token")

    @property
    def eos_token_id(self) -> int:
        return int(self.hf.eos_token_id)

    @property
    def vocabulary_size(self) -> int:
        return len(self.hf)

    @property
    def fingerprint(self) -> str:
        """Equal for tokenizers that give the same ids for the same text: a hash of their whole definition."""
        definition = json.loads(self.hf.backend_tokenizer.to_str())
        definition["truncation"] = definition["padding"] = None
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:32]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.hf.encode(text, add_special_tokens=False)
        return ids

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The messages under the tokenizer's chat template, up to where the assistant's next one begins.

        Raises:
            ModelError: it has no chat template, or one that refuses these messages.
        """
        from jinja2 import TemplateError

        try:
            ids: list[int] = self.hf.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        except (ValueError, TemplateError) as error:
            raise ModelError(f"chat prompts: {str(error).splitlines()[0]}; use prompt.style plain") from None
        return ids

    def decode(self, token_ids: list[int]) -> str:
        text: str = self.hf.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
