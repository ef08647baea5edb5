"""The few numbers that say what a store holds, and which one it is."""

import hashlib
import json
from dataclasses import asdict

import numpy as np

from treeopo_storage.protocol import TreeStore
from treeopo_storage.schema import SCHEMA_VERSION


def identity(store: TreeStore) -> str:
    """Equal for stores that hold the same trees, wherever they are: a hash of their problems' ids and their sizes."""
    what = [store.problem_ids(), store.node_count, store.token_count, store.meta.tokenizer_fingerprint]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def summarize(store: TreeStore) -> dict[str, object]:
    """Settings and sizes of a store's snapshot; loads its structure (P rows), no tokens.

    `solved_problems` have at least one terminal node of reward 1.
    """
    structure = store.structure()
    solved = structure.terminal & (structure.reward >= 1)
    return {
        **asdict(store.meta),
        "schema_version": SCHEMA_VERSION,
        "problems": store.problem_count,
        "solved_problems": len(np.unique(structure.problem[solved])),
        "prefixes": store.node_count,
        "terminal_prefixes": int(structure.terminal.sum()),
        "tokens": store.token_count,
        "deepest_step": int(structure.depth.max(initial=0)),
        "longest_prefix_tokens": int(structure.prefix_lengths.max(initial=0)),
    }
