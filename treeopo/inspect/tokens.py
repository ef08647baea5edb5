"""Whether a store's tokens are those that a tokenizer gives for its texts."""

from collections.abc import Iterator

import numpy as np
from treeopo_storage import TreeStore

from treeopo.engines.tokenizer import ModelTokenizer

_ROOTS = 64
"""Roots looked at; a store is of one make, so that a few say what the others are."""


def missing_opening(store: TreeStore, tokenizer: ModelTokenizer) -> str | None:
    """A warning, if prompts of the store lack what the tokenizer puts before a text (a beginning-of-text token).

    Chat prompts hold what their template writes, and are left alone.
    """
    opening, prompt = tokenizer.opening, store.meta.search.get("prompt")
    if not opening or (isinstance(prompt, dict) and prompt.get("style") == "chat"):
        return None
    roots = list(_roots(store))
    lacking = sum(root[: len(opening)] != opening for root in roots)
    if not lacking:
        return None
    names = "".join(tokenizer.hf.convert_ids_to_tokens(opening))
    return (
        f"warning: {lacking} of {len(roots)} prompts looked at in the store do not begin with {names}, which this "
        "tokenizer puts before a text and an evaluation therefore too; make the store anew, or copy it by treeopo "
        "store retokenize"
    )


def _roots(store: TreeStore) -> Iterator[list[int]]:
    count = store.problem_count
    for problem in np.unique(np.linspace(0, count - 1, min(count, _ROOTS)).astype(int)) if count else ():
        yield store.prefix_tokens(int(problem), 0).tolist()
