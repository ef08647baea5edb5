"""A random student, and a searched store under its tokenizer."""

from pathlib import Path

from treeopo_storage import TreeStore, create_store, open_writer
from treeopo_storage.retokenize import retokenize, retokenized_meta

from tests.tiny_models import random_qwen2
from treeopo.engines.tokenizer import ModelTokenizer


def student_and_store(directory: Path, searched: TreeStore) -> tuple[Path, Path]:
    """Their places in `directory`: `student` and `trees.zarr`."""
    student, store = random_qwen2(directory / "student"), directory / "trees.zarr"
    tokenizer = ModelTokenizer(str(student))
    create_store(store, retokenized_meta(searched.meta, tokenizer.fingerprint, tokenizer.vocabulary_size))
    with open_writer(store) as writer:
        retokenize(searched, writer, tokenizer, tokenizer.eos_token_id)
    return student, store
