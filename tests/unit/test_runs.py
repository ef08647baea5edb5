"""What the composition root decides: which store a run draws from."""

from pathlib import Path

from treeopo_storage import TreeStore, open_store

from tests.tiny_models import byte_tokenizer
from treeopo import runs
from treeopo.engines.tokenizer import ModelTokenizer


def test_a_re_tokenised_store_says_the_same_in_other_tokens_and_is_made_once(
    searched_store: TreeStore, tmp_path: Path
) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "model")
    tokenizer = ModelTokenizer(str(tmp_path / "model"))
    notices: list[str] = []
    for _ in range(2):
        copy = runs._retokenized(searched_store, tmp_path / "copy.zarr", tokenizer, notices.append)
    assert notices == [f"{searched_store.node_count} prefixes re-tokenised, 0 no longer decode to their text"]
    assert copy.meta.tokenizer_fingerprint == tokenizer.fingerprint
    tree = open_store(tmp_path / "copy.zarr").problem(2)
    text = "".join(searched_store.problem(2).texts[step] for step in tree.path(3))
    assert tokenizer.decode(tree.prefix_tokens(3).tolist()) == text
