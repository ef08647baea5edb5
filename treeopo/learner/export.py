"""A trained adapter merged into its base: a plain transformers model, which any engine loads."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

from treeopo.learner.adapters import load_adapter
from treeopo.learner.policy import load_base


def save_merged_model(base: str, adapter: Path, directory: Path, trust_remote_code: bool = False) -> None:
    """Write model, configurations and tokenizer into `directory`, weights as safetensors in the base's own dtype.

    The sum W + (alpha/r) B A is taken in float32 and rounded once.

    Raises:
        ModelError: the base cannot be loaded, or the adapter is damaged or not of this base.
    """
    dtype = (
        getattr(AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code), "dtype", None) or torch.float32
    )
    adapted = load_adapter(load_base(base, torch.float32, trust_remote_code), base, adapter)
    adapted.merge_and_unload(safe_merge=True).to(dtype).save_pretrained(str(directory))
    has_tokenizer = (adapter / "tokenizer_config.json").is_file()
    source = str(adapter) if has_tokenizer else base
    AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code).save_pretrained(str(directory))
