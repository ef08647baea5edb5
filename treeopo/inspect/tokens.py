"""Whether a store's tokens are those that a tokenizer gives for its texts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from treeopo_storage import IMPORTED, ProblemTree, TreeStore, TreeWriter
from treeopo_storage.joint import Encoded
from treeopo_storage.retokenize import check_tokenizer, retokenize
from treeopo_storage.streaming import problem_blocks

from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ModelError
from treeopo.records import IntArray

LOOKED_AT = 2_000
"""Prefixes that a share is measured on, of whole problems spread over the store: good to a percent or two."""

ENOUGH = 0.99
"""A share below this is warned of."""

_ROOTS = 64
"""Roots looked at; a store is of one make, so that a few say what the others are."""


@dataclass(frozen=True, slots=True)
class CanonicalPrefixes:
    """Of the prefixes `looked_at`, how many hold the tokens that the tokenizer gives for their text."""

    canonical: int
    looked_at: int

    @property
    def share(self) -> float:
        return self.canonical / max(self.looked_at, 1)

    def __str__(self) -> str:
        percent = math.floor(1000 * self.share) / 10  # all but one of many is not 100%
        return f"{self.canonical:,} of {self.looked_at:,} looked at ({percent:.1f}%)"

    @property
    def told(self) -> str:
        """One line for the start of a run; docs/store.md says what to make of it."""
        if self.share >= ENOUGH:
            return f"prefixes with the tokens that the tokenizer gives for their text: {self}"
        return (
            f"warning: prefixes with the tokens that the tokenizer gives for their text: {self}; the student would not "
            "write the others so. They are a searching teacher's own, or part from a solution that shares a step, or "
            "an earlier version encoded steps one by one: make such a store anew (docs/store.md, Canonical prefixes)"
        )


def canonical_prefixes(store: TreeStore, tokenizer: ModelTokenizer, limit: int = LOOKED_AT) -> CanonicalPrefixes:
    """The share of canonical prefixes of a store whose tokens are the tokenizer's.

    Canonical: the tokens are those of the prefix's text, or those with which a solution through it begins. The prompt
    may be encoded on its own, as an evaluation has to.
    """
    wanted = max(1, round(store.problem_count * limit / max(store.node_count, 1)))
    canonical = looked_at = 0
    for problem in _spread(store.problem_count, wanted):
        found = _canonical(store.problem(problem), tokenizer)
        canonical, looked_at = canonical + sum(found), looked_at + len(found)
    return CanonicalPrefixes(canonical, looked_at)


def _canonical(tree: ProblemTree, tokenizer: ModelTokenizer) -> list[bool]:
    """Of every node of a tree (P)."""
    root = tree.prefix_tokens(0)
    question, prompt = tree.question, tree.texts[0]
    if not tokenizer.reads_as(root.tolist(), prompt):  # a chat template's special tokens are not in the text
        question, prompt = "", tokenizer.reads(root.tolist())
    steps = ["".join(tree.texts[step] for step in tree.path(node)[1:]) for node in range(tree.node_count)]
    encoded = [tokenizer.encode_solution(question, prompt, text) for text in steps]
    through: list[list[int]] = [[node] for node in range(tree.node_count)]
    for leaf in sorted(set(range(tree.node_count)) - set(tree.parent.tolist())):
        for node in tree.path(leaf)[:-1]:
            through[node].append(leaf)
    found = []
    for node in range(tree.node_count):
        ids = tree.prefix_tokens(node)
        ids = ids[:-1] if tree.terminal[node] and ids[-1] in tokenizer.end_token_ids else ids
        found.append(any(_begins(encoded[other], ids, encoded[0].ids, len(prompt)) for other in through[node]))
    return found


def _begins(encoded: Encoded, ids: IntArray, asked: IntArray, prompt: int) -> bool:
    """Whether a text's tokens begin with `ids`; its prompt, of so many characters, may be encoded as it is `asked`."""
    if np.array_equal(encoded.ids[: len(ids)], ids):
        return True
    after = encoded.after(int(np.searchsorted(encoded.starts, prompt))).ids
    rest = ids[len(asked) :]
    return np.array_equal(ids[: len(asked)], asked) and np.array_equal(after[: len(rest)], rest)


def look(store: TreeStore, name: str | None) -> CanonicalPrefixes | None:
    """The share by the tokenizer of the model `name`, or else by the teacher's if that is a directory here and still
    has the store's tokenizer; None where there is neither.

    Raises:
        ModelError: `name` has no tokenizer. TokenizerMismatchError: it is another than the store's.
    """
    if name is not None:
        tokenizer = ModelTokenizer(name)
        check_tokenizer(store.meta, tokenizer.fingerprint)
        return canonical_prefixes(store, tokenizer)
    own = own_tokenizer(store)
    return None if own is None else canonical_prefixes(store, own)


def own_tokenizer(store: TreeStore) -> ModelTokenizer | None:
    """The teacher's, if it is a directory here and still has the store's tokenizer."""
    if not Path(store.meta.teacher).is_dir():
        return None
    try:
        own = ModelTokenizer(store.meta.teacher)
    except (ModelError, ImportError):
        return None
    return own if own.fingerprint == store.meta.tokenizer_fingerprint else None


def retokenized(store: TreeStore, writer: TreeWriter, tokenizer: ModelTokenizer) -> Iterator[str]:
    """Copy a store under another tokenizer; yields what there is to tell."""
    own = own_tokenizer(store)
    ended_by = frozenset[int]() if own is None else own.end_token_ids
    yield str(retokenize(store, writer, tokenizer, tokenizer.eos_token_id, ended_by))
    if own is None and store.meta.teacher != IMPORTED:
        yield (
            f"the teacher {store.meta.teacher!r} is no directory here with the store's tokenizer: which solutions "
            "ended by themselves is not known, and none ends with an end-of-text token"
        )
    if warning := _lost_chat(store):
        yield warning


def check_ids(store: TreeStore, vocabulary_size: int) -> None:
    """That a model of `vocabulary_size` tokens can read the store; a teacher of the same tokenizer may have had more.

    Raises:
        ModelError: it has no embedding of a token there.
    """
    known = store.meta.vocabulary_size
    if known is not None and known <= vocabulary_size:
        return
    for start, stop in problem_blocks(store.structure().first_node):
        for tree in store.problems(start, stop):
            if (largest := int(tree.token_ids.max(initial=0))) >= vocabulary_size:
                raise ModelError(
                    f"the store holds token {largest} ({tree.id!r}), and the student has {vocabulary_size} tokens: "
                    "use one with as many rows as the teacher, or re-tokenise the store (treeopo store retokenize)"
                )


def missing_opening(store: TreeStore, tokenizer: ModelTokenizer) -> str | None:
    """A warning, if prompts of the store lack what the tokenizer puts before a text (a beginning-of-text token).

    Chat prompts hold what their template writes, and are left alone.
    """
    opening, prompt = tokenizer.opening, store.meta.search.get("prompt")
    if not opening or (isinstance(prompt, dict) and prompt.get("style") == "chat"):
        return None
    roots = [store.prefix_tokens(problem, 0).tolist() for problem in _spread(store.problem_count, _ROOTS)]
    lacking = sum(root[: len(opening)] != opening for root in roots)
    if not lacking:
        return None
    names = "".join(tokenizer.hf.convert_ids_to_tokens(opening))
    return (
        f"warning: {lacking} of {len(roots)} prompts looked at in the store do not begin with {names}, which this "
        "tokenizer puts before a text and an evaluation therefore too; make the store anew, or copy it by treeopo "
        "store retokenize"
    )


def _lost_chat(store: TreeStore) -> str | None:
    """A warning for those who re-tokenise a store of chat prompts: their texts hold no special tokens."""
    prompt = store.meta.search.get("prompt")
    if not isinstance(prompt, dict) or prompt.get("style") != "chat":
        return None
    return (
        "warning: the store's prompts are a chat template's, and their texts lack its special tokens: so will the "
        "re-tokenised prompts; search with the student's own template, or with prompt.style plain"
    )


def _spread(count: int, wanted: int) -> Iterator[int]:
    """At most `wanted` of the numbers below `count`, evenly spread."""
    if count:
        yield from np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(int)).tolist()
