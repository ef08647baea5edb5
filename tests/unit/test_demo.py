"""The demo's figures are those of its parts, and a stage that finds its work done keeps its first time."""

from pathlib import Path

import numpy as np

from treeopo.evaluation.accuracy import Scores
from treeopo.evaluation.comparison import compare_models
from treeopo.jobs.demo import Demo, _Seconds, summary
from treeopo.jobs.train import TrainSummary
from treeopo.search.report import TreeReport


def test_the_summary_holds_before_and_after_with_intervals_and_their_paired_difference() -> None:
    ids = tuple(map(str, range(100)))
    after = Scores(ids, np.array([1.0] * 90 + [0.0] * 10), np.ones((100, 2)), (("1", "1"),) * 100, 0)
    before = Scores(ids, np.array([1.0] * 30 + [0.0] * 70), np.zeros((100, 2)), (("0", "0"),) * 100, 0)
    empty = np.zeros(0)
    report = TreeReport(7, 7, 5, 60, 60, 112, 900, empty.astype(int), empty.astype(int), empty)
    training = TrainSummary(20, True, 19, 1, 900.0, 800.0, "50 prefixes", Path("demo/run/adapter"), None)
    evaluation = compare_models("set", ["demo/run", "base"], [after, before])
    figures = summary(Demo(Path("demo"), report, training, evaluation, {"trees": 3.0, "training": 4.0}))
    assert figures["before"]["pass_at_1"] == 0.3
    assert figures["after"]["pass_at_1"] == 0.9
    assert figures["before"]["low"] < 0.3 < figures["before"]["high"] < figures["after"]["low"]
    assert abs(figures["difference"]["estimate"] - 0.6) < 1e-12
    assert figures["difference"]["low"] > 0.4
    assert (figures["problems"], figures["prefixes"], figures["steps"]) == (7, 60, 20)
    assert (figures["max_staleness_seen"], figures["seconds"], figures["held_out_problems"]) == (1, 7.0, 100)


def test_a_stage_done_before_keeps_the_time_it_took(tmp_path: Path) -> None:
    (tmp_path / "seconds.json").write_text('{"trees": 123.0}')
    again = _Seconds(tmp_path / "seconds.json")
    with again.of("trees"):
        pass
    with again.of("training"):
        pass
    assert again.taken["trees"] == 123.0
    assert 0 <= _Seconds(tmp_path / "seconds.json").taken["training"] < 100
