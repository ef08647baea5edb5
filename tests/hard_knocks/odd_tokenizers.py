"""Small tokenizers with the habits of the large ones: a beginning-of-text token, a space before every text, merges."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from treeopo.engines.tokenizer import ModelTokenizer

BOS, EOS, THINK = "<s>", "<|endoftext|>", "<think>"
CHAT = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def saved(path: Path, backend: Tokenizer, *, bos: bool = False, chat: str | None = None) -> ModelTokenizer:
    """As a checkpoint has it. bos: the tokenizer puts `<s>` before a text, as those of Gemma, Llama and Mistral do."""
    backend.add_special_tokens([AddedToken(name, special=True) for name in (EOS, BOS)])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=EOS)
    fast.chat_template = chat
    fast.save_pretrained(path)
    return ModelTokenizer(str(path))


def byte_level(*merges: tuple[str, str], by_words: bool = False, space: bool = False) -> Tokenizer:
    """One token a byte, then one for each merge (in ByteLevel's letters: a line feed is written Ċ, a space Ġ).

    by_words: merges keep to GPT-2's words; of the line feeds before a letter the last one is then a word of its own.
    space: one is put before every text.
    """
    pieces = [*sorted(ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    backend = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, list(merges)))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=space, use_regex=by_words)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)  # as GPT-2's: offsets without their white space
    return backend


def metaspace(scheme: str) -> Tokenizer:
    """SentencePiece's way: a space before the text, or before every part of it; other characters by their bytes."""
    backend = byte_fallback()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    return backend


def llama2() -> Tokenizer:
    """As Llama 2's checkpoints hold it: a normaliser that prepends, no pre-tokenizer, a decoder that strips."""
    backend = byte_fallback()
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    return backend


def byte_fallback() -> Tokenizer:
    """SentencePiece's vocabulary: pieces, and a byte each for whatever they do not spell."""
    said = ["▁", *"0123456789+=?#.sot", "so", "▁s", "▁so", "\n\n", "\n"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *said]
    merges = [("▁", "s"), ("▁s", "o"), ("s", "o"), ("▁", "so"), ("\n", "\n")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
