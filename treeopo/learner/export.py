"""A trained adapter merged into its base: a plain transformers model, which any engine loads."""

from pathlib import Path

from transformers import AutoTokenizer

from treeopo.errors import ModelError, shortened
from treeopo.learner.merge import merged_model


def save_merged_model(
    base: str, adapter: Path, tokenizer: str, directory: Path, trust_remote_code: bool = False
) -> None:
    """Write model, configurations and tokenizer into `directory`, weights as safetensors in the dtypes of the base's.

    Raises:
        ModelError: the base or the tokenizer cannot be loaded, or the adapter is damaged, not of this base, or cannot
            be merged.
    """
    merged_model(base, adapter, trust_remote_code).save_pretrained(str(directory))
    try:
        AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code).save_pretrained(str(directory))
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer for {tokenizer!r}: {shortened(str(error))}") from None
