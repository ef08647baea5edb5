"""The report of a finished search, on trees small enough to count by hand."""

from dataclasses import replace

import numpy as np
from treeopo_storage import ProblemTree

from treeopo.search.report import report_trees


def tree(parent: list[int], reward: list[float], visits: list[int], value_sum: list[float]) -> ProblemTree:
    """A tree of P nodes with one token a step and two in the prompt."""
    P = len(parent)
    depth = [0] * P
    for node in range(1, P):
        depth[node] = depth[parent[node]] + 1
    return ProblemTree(
        id="p",
        question="?",
        answer="1",
        parent=np.array(parent, np.int32),
        depth=np.array(depth, np.int32),
        visits=np.array(visits, np.int32),
        value_sum=np.array(value_sum),
        terminal=~np.isnan(reward),
        reward=np.array(reward, np.float32),
        action=np.ones(P, np.int8),
        token_ids=np.zeros(P + 1, np.int32),
        token_offsets=np.array([0, *range(2, P + 2)], np.int64),
        teacher_logprobs=np.zeros(P + 1, np.float32),
        texts=("", *(f"step {node}" for node in range(1, P))),
    )


OPEN = float("nan")
#     0 ─┬─ 1 ─┬─ 3 right          0 ── 1 wrong
#        │     └─ 4 wrong
#        └─ 2 ─── 5 right
MIXED = tree([-1, 0, 0, 1, 1, 2], [OPEN, OPEN, OPEN, 1, 0, 1], [3, 2, 1, 1, 1, 1], [2, 1, 1, 1, 0, 1])
WRONG = tree([-1, 0], [OPEN, 0], [2, 2], [0, 0])


def test_totals_are_those_counted_by_hand() -> None:
    report = report_trees([MIXED, WRONG])
    assert (report.problems, report.solved, report.with_both_outcomes) == (2, 1, 1)
    assert (report.prefixes, report.traces, report.tokens) == (8, 5, 6)
    assert report.prefixes_by_depth.tolist() == [2, 3, 3]
    assert report.prefixes_by_children.tolist() == [0, 2, 2]


def test_equal_text_below_equal_text_is_one_prefix() -> None:
    """Nodes 1 and 2 read alike, and so do 3 and 5 below them; 4 reads like 1, but elsewhere."""
    alike = replace(MIXED, texts=("", "a", "a", "b", "a", "b"))
    assert report_trees([MIXED, WRONG]).unique_prefixes == 8
    assert report_trees([alike]).unique_prefixes == 4


def test_solve_rate_is_the_mean_over_unfinished_prefixes_of_a_depth() -> None:
    report = report_trees([MIXED, WRONG])
    np.testing.assert_allclose(report.solve_rate_by_depth, [(2 / 3 + 0) / 2, (1 / 2 + 1) / 2, np.nan])


def test_a_generator_of_trees_is_read_once() -> None:
    assert report_trees(iter([MIXED])).prefixes == 6


def test_no_trees_give_an_empty_report() -> None:
    report = report_trees([])
    assert (report.problems, report.prefixes, len(report.solve_rate_by_depth)) == (0, 0, 0)
