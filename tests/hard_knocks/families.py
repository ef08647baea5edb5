"""Small tokenizers with the rules of well-known families: how a text begins, where an answer ends, what a chat template
does. Vocabularies of some hundred tokens; the templates do what the family's do, in words of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from tests.hard_knocks.odd_tokenizers import byte_fallback, byte_level, llama2
from treeopo.engines.tokenizer import ModelTokenizer

PADDING = 16
"""Rows of the head beyond the tokenizer, as Qwen2.5's has 271."""

_WORDS = r"\p{N}{1,3}|\s*[\r\n]+| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
_MERGES = [("Ċ", "Ċ"), ("Ġ", "s"), ("Ġs", "o"), ("i", "t"), ("1", "2"), ("?", "Ċ"), ("?Ċ", "Ċ"), (".", "ĊĊ")]


@dataclass(frozen=True)
class Family:
    """eos: what the tokenizer calls the end of text; ends: where the model stops, by its files; turn: what the template
    writes after an answer. begins: with what the tokenizer begins a text. argument: what the template asks for.
    forgets: it takes the thinking out of earlier turns.
    """

    name: str
    backend: Callable[[], Tokenizer]
    template: str
    specials: Sequence[str]
    eos: str
    turn: str
    ends: Sequence[str]
    begins: str | None = None
    bos: str | None = None
    argument: str | None = None
    forgets: bool = False

    def saved(self, path: Path) -> ModelTokenizer:
        backend = self.backend()
        backend.add_special_tokens([AddedToken(name, special=True) for name in self.specials])
        if self.begins is not None:
            begin = processors.TemplateProcessing(
                single=f"{self.begins} $A", special_tokens=[(self.begins, backend.token_to_id(self.begins))]
            )
            backend.post_processor = begin
        fast = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=self.bos or self.begins, eos_token=self.eos, pad_token=self.eos
        )
        fast.chat_template = self.template
        fast.save_pretrained(path)
        LlamaConfig(vocab_size=len(fast) + PADDING).save_pretrained(path)
        ids = [fast.convert_tokens_to_ids(name) for name in self.ends]
        GenerationConfig(eos_token_id=ids if len(ids) > 1 else ids[0]).save_pretrained(path)
        return ModelTokenizer(str(path))


def _bytes(*before: pre_tokenizers.PreTokenizer) -> Tokenizer:
    backend = byte_level(*_MERGES)
    last = ByteLevel(add_prefix_space=False, use_regex=not any(isinstance(one, pre_tokenizers.Split) for one in before))
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, last])
    return backend


def _by_words() -> Tokenizer:
    return _bytes(pre_tokenizers.Split(Regex(_WORDS), "isolated"))


def _single_digits() -> Tokenizer:
    return _bytes(pre_tokenizers.Digits(individual_digits=True))


def _gemma() -> Tokenizer:
    backend = byte_fallback()
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _chat_ml(system: str | None = None, answer: str = "{{ m.content }}", opened: str = "") -> str:
    default = f"{{% if messages[0].role != 'system' %}}<|im_start|>system\n{system}<|im_end|>\n{{% endif %}}"
    turn = f"{{% if m.role == 'assistant' %}}{answer}{{% else %}}{{{{ m.content }}}}{{% endif %}}"
    return (
        f"{default if system else ''}{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{turn}<|im_end|>\n"
        f"{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{opened}{{% endif %}}"
    )


_CHAT_ML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

FAMILIES = (
    Family(
        "llama2",
        llama2,
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('in turn') }}"
        "{% endif %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content.strip() }} [/INST]"
        "{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>"),
        eos="</s>",
        turn="</s>",
        ends=("</s>",),
        begins="<s>",
    ),
    Family(
        "llama3",
        _by_words,
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}<|head|>{{ m.role }}<|/head|>\n\n"
        "{{ m.content | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}",
        ("<|begin|>", "<|end|>", "<|head|>", "<|/head|>", "<|eot|>"),
        eos="<|end|>",
        turn="<|eot|>",
        ends=("<|end|>", "<|eot|>"),
        begins="<|begin|>",
    ),
    Family(
        "gemma",
        _gemma,
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<turn|>\n{% endfor %}"
        "{% if add_generation_prompt %}<turn>model\n{% endif %}",
        ("<eos>", "<bos>", "<turn>", "<turn|>"),
        eos="<eos>",
        turn="<turn|>",
        ends=("<eos>", "<turn|>"),
        begins="<bos>",
    ),
    Family(
        "qwen2.5",
        _by_words,
        _chat_ml("You help."),
        _CHAT_ML,
        eos="<|im_end|>",
        turn="<|im_end|>",
        ends=("<|im_end|>", "<|endoftext|>"),
    ),
    Family(
        "qwen3",
        _by_words,
        _chat_ml(
            answer="{{ m.content.split('</think>')[-1].lstrip('\n') }}",
            opened="{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
        ),
        _CHAT_ML,
        eos="<|im_end|>",
        turn="<|im_end|>",
        ends=("<|im_end|>", "<|endoftext|>"),
        argument="enable_thinking",
        forgets=True,
    ),
    Family(
        "smollm2",
        _single_digits,
        _chat_ml("You are small."),
        _CHAT_ML,
        eos="<|im_end|>",
        turn="<|im_end|>",
        ends=("<|im_end|>",),
        bos="<|im_start|>",  # has one, and puts it nowhere
    ),
)
