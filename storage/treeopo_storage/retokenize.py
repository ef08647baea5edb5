"""Token ids mean something under one tokenizer only: compare fingerprints, and re-tokenise when asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from treeopo_storage.errors import TokenizerMismatchError
from treeopo_storage.protocol import TreeStore, TreeWriter
from treeopo_storage.schema import ProblemTree, StoreMeta
from treeopo_storage.streaming import problem_blocks


def check_tokenizer(meta: StoreMeta, fingerprint: str) -> None:
    """`TokenizerMismatchError` unless the store's token ids are those of the tokenizer with this fingerprint."""
    if meta.tokenizer_fingerprint != fingerprint:
        raise TokenizerMismatchError(
            f"the store's tokens are of tokenizer {meta.tokenizer_fingerprint}, the student's is {fingerprint}; "
            "use a student with the teacher's tokenizer, or re-tokenise the store (treeopo store retokenize)"
        )


@dataclass(frozen=True, slots=True)
class Retokenized:
    """What re-tokenising did: of `prefixes` prefixes, `changed` no longer decode to their text."""

    prefixes: int
    changed: int


def retokenized_meta(meta: StoreMeta, fingerprint: str, vocabulary_size: int | None = None) -> StoreMeta:
    """The settings of the same trees under another tokenizer."""
    return replace(meta, tokenizer_fingerprint=fingerprint, vocabulary_size=vocabulary_size)


def retokenize(
    store: TreeStore,
    writer: TreeWriter,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
) -> Retokenized:
    """Copy every problem, each step's text encoded on its own so that steps keep their boundaries.

    Teacher log-probabilities become NaN: they belong to other tokens. `encode` must add no special tokens.
    """
    prefixes = changed = 0
    for start, stop in problem_blocks(store.structure().first_node):
        trees = [_retokenize(tree, encode) for tree in store.problems(start, stop)]
        writer.append(trees)
        for tree in trees:
            prefixes += tree.node_count
            changed += sum(not _round_trips(tree, node, decode) for node in range(tree.node_count))
    return Retokenized(prefixes, changed)


def _retokenize(tree: ProblemTree, encode: Callable[[str], Sequence[int]]) -> ProblemTree:
    steps = [np.asarray(encode(text), np.int32) for text in tree.texts]
    token_ids = np.concatenate(steps)
    return replace(
        tree,
        token_ids=token_ids,
        token_offsets=np.cumsum([0, *map(len, steps)]),
        teacher_logprobs=np.full(len(token_ids), np.nan, np.float32),
    )


def _round_trips(tree: ProblemTree, node: int, decode: Callable[[Sequence[int]], str]) -> bool:
    return decode(tree.prefix_tokens(node).tolist()) == "".join(tree.texts[step] for step in tree.path(node))
