"""Statistics of finished trees: sizes, branching, and solve rate by depth."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from treeopo_storage import ProblemTree

IntHistogram = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TreeReport:
    """Totals over problems; arrays are indexed by depth (root 0) or by number of children.

    solved: problems with a solved trace (reward 1); with_both_outcomes: with traces of different rewards, a solved and
    a failed one where those are the only rewards: the only problems that teach.
    unique_prefixes: of different text after one problem's prompt; the same text in other tokens is another prefix.
    traces: counted by the searches, a trace sampled twice twice. tokens: of all stored steps, prompts excluded.
    solve_rate_by_depth: mean over the unfinished prefixes of a depth of their traces' mean reward (the share of solved
    ones, where rewards are 0 or 1), NaN where there is none. It rises with depth where the paper's reverse curriculum
    (§3.1) holds.
    """

    problems: int
    solved: int
    with_both_outcomes: int
    prefixes: int
    unique_prefixes: int
    traces: int
    tokens: int
    prefixes_by_depth: IntHistogram
    prefixes_by_children: IntHistogram  # unfinished prefixes only
    solve_rate_by_depth: npt.NDArray[np.float64]


def report_trees(trees: Iterable[ProblemTree]) -> TreeReport:
    """Total up finished trees, read once and one at a time."""
    problems = solved = with_both = unique = traces = tokens = 0
    empty: npt.NDArray[Any] = np.zeros(0, np.int64)
    depths, unfinished_depths, unfinished_values, child_counts = [[empty] for _ in range(4)]
    for tree in trees:
        rewards = tree.reward[tree.terminal]
        problems += 1
        solved += int((rewards >= 1).any())
        with_both += int(len(np.unique(rewards)) > 1)
        unique += _unique_texts(tree)
        traces += int(tree.visits[0])
        tokens += int(tree.token_offsets[-1] - tree.token_offsets[1])
        depths.append(tree.depth)
        child_counts.append(np.bincount(tree.parent[1:], minlength=tree.node_count)[~tree.terminal])
        unfinished = ~tree.terminal & (tree.visits > 0)
        unfinished_depths.append(tree.depth[unfinished])
        unfinished_values.append(tree.value_sum[unfinished] / tree.visits[unfinished])
    prefixes_by_depth = np.bincount(np.concatenate(depths))
    rated, levels = np.concatenate(unfinished_depths), len(prefixes_by_depth)
    value_by_depth = np.bincount(rated, weights=np.concatenate(unfinished_values), minlength=levels)
    count_by_depth = np.bincount(rated, minlength=levels)
    return TreeReport(
        problems=problems,
        solved=solved,
        with_both_outcomes=with_both,
        prefixes=int(prefixes_by_depth.sum()),
        unique_prefixes=unique,
        traces=traces,
        tokens=tokens,
        prefixes_by_depth=prefixes_by_depth,
        prefixes_by_children=np.bincount(np.concatenate(child_counts)),
        solve_rate_by_depth=np.where(count_by_depth > 0, value_by_depth / np.maximum(count_by_depth, 1), np.nan),
    )


def _unique_texts(tree: ProblemTree) -> int:
    """How many different texts the prefixes of a tree have: equal steps below prefixes of equal text are one."""
    number: dict[tuple[int, str], int] = {}
    same = [number.setdefault((-1, ""), 0)]
    for node in range(1, tree.node_count):
        same.append(number.setdefault((same[tree.parent[node]], tree.texts[node]), len(number)))
    return len(number)
