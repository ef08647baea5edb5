"""Token ids mean something under one tokenizer only: compare fingerprints, and re-tokenise when asked."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from treeopo_storage.errors import TokenizerMismatchError
from treeopo_storage.joint import TreeTokenizer, changed_prefixes, encode_tree
from treeopo_storage.protocol import TreeStore, TreeWriter
from treeopo_storage.schema import IMPORTED, ProblemTree, StoreMeta
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
    """What re-tokenising did: of `prefixes` prefixes, `changed` do not decode to their text; at the end of `moved`, a
    token reaches into the next step and took its characters along.
    """

    prefixes: int
    changed: int
    moved: int = 0

    def __str__(self) -> str:
        moved = f"; the end of {self.moved} moved to the end of the token there" if self.moved else ""
        return f"{self.prefixes} prefixes re-tokenised; {self.changed} no longer decode to their text{moved}"


def retokenized_meta(meta: StoreMeta, fingerprint: str, vocabulary_size: int | None = None) -> StoreMeta:
    """The settings of the same trees under another tokenizer."""
    return replace(meta, tokenizer_fingerprint=fingerprint, vocabulary_size=vocabulary_size)


def retokenize(
    store: TreeStore, writer: TreeWriter, tokenize: TreeTokenizer, end_of_text: int, ended_by: Collection[int] = ()
) -> Retokenized:
    """Copy every problem, its solutions encoded anew as `treeopo_storage.joint` has it.

    Teacher log-probabilities become NaN: they belong to other tokens. A solution that ended with a token of `ended_by`,
    of the store's own tokenizer, ends with `end_of_text`, and every imported one does; others were cut, or ended by
    their answer.
    """
    imported = store.meta.teacher == IMPORTED
    prefixes = changed = moved = 0
    for start, stop in problem_blocks(store.structure().first_node):
        done = []
        for tree in store.problems(start, stop):
            last = tree.token_ids[np.maximum(tree.token_offsets[1:] - 1, 0)]
            ended = imported | np.isin(last, list(ended_by))
            done.append(_retokenize(tree, tokenize, tree.terminal & ended, end_of_text))
        writer.append([tree for tree, _ in done])
        for tree, moved_here in done:
            prefixes += tree.node_count
            changed += changed_prefixes(tree, tokenize)
            moved += moved_here
    return Retokenized(prefixes, changed, moved)


def _retokenize(
    tree: ProblemTree, tokenize: TreeTokenizer, ends_P: npt.NDArray[np.bool_], end_of_text: int
) -> tuple[ProblemTree, int]:
    """The tree, and how many of its steps end otherwise."""
    joint = encode_tree(tree.question, tree.texts, tree.parent, tree.visits, tokenize)
    steps = [
        np.append(step, np.int32(end_of_text)) if ends else step for step, ends in zip(joint.steps, ends_P, strict=True)
    ]
    token_ids = np.concatenate(steps)
    made = replace(
        tree,
        token_ids=token_ids,
        token_offsets=np.cumsum([0, *map(len, steps)]),
        teacher_logprobs=np.full(len(token_ids), np.nan, np.float32),
        texts=joint.texts,
    )
    return made, joint.moved
