"""Every metric has a namespace and is documented, and runs of version 0.1 read under today's names."""

import json
from pathlib import Path

import pytest

from tests.killed_run import new_run, prepare
from tests.metric_names import PAGE, is_documented, table
from tests.unit.test_training_start import train
from treeopo.evaluation.periodic import BEST_RECORD, read_best
from treeopo.trackers import names, read_metrics
from treeopo.trackers.names import current_name

NAMESPACES = {"rollout", "advantage", "learner", "engine", "grader", "pipeline", "behaviour", "eval", "spent"}


def test_every_metric_of_a_whole_run_is_in_the_table_of_the_documentation(tmp_path: Path) -> None:
    """With an engine that is compared with the learner, evaluations beside training, and a quadratic program."""
    prepare(tmp_path)
    run = new_run(
        tmp_path,
        "run",
        steps=2,
        **{
            "advantage.method": "qp-soft",
            "rollout.behaviour.sequences": 8,
            "rollout.max_sequence_tokens": 400,
            "evaluation.problems": "staged-arithmetic:easy:test",
            "evaluation.limit": 2,
        },
    )
    train(run, 1.0)
    written = {name for path in (run.metrics, run.evaluations) for row in read_metrics(path) for name in row} - {"step"}
    assert {name.partition("/")[0] for name in written} == NAMESPACES
    assert [name for name in sorted(written) if not is_documented(name)] == []


def test_a_name_is_documented_below_its_namespace_and_written_by_the_file_that_is_named() -> None:
    assert len(table()) > 50
    section = ""
    for line in PAGE.read_text().splitlines():
        section = line.split("`")[1] if line.startswith("### `") else section
        if line.startswith("| `") and section:
            assert line.startswith(f"| `{section}"), line
    package = PAGE.parents[1] / "treeopo"
    for name, file in table().items():
        code = (package / file).read_text()
        assert f'"{name.partition("/")[0]}/' in code, (name, file)


def test_every_name_of_version_0_1_has_a_documented_name_of_today() -> None:
    old = [*names._ONE_BY_ONE, "seconds_step", "engine_seconds_starved", "engine_restarts", "grader_timeouts"]
    old += ["staleness_mean", "staleness_in_queue_share_3", "behaviour_mass", "eval_pass_at_1_low"]
    assert [name for name in old if not is_documented(current_name(name))] == []


@pytest.mark.parametrize("name", ["step", "version", "rollout/reward", "my_own", "engine/restarts"])
def test_other_names_are_left_alone(name: str) -> None:
    assert current_name(name) == name


def test_metrics_and_best_evaluation_of_version_0_1_are_read_under_todays_names(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "reward": 0.5, "staleness_share_0": 1.0, "critic_loss": 2.0}\n'
    )
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "rollout/reward": 0.5, "rollout/staleness_share_0": 1.0, "learner/critic_loss": 2.0}
    ]
    record = {"version": 20, "eval_pass_at_1": 0.5, "eval_pass_at_1_low": 0.25, "eval_truncated_share": 0.0}
    (tmp_path / BEST_RECORD).write_text(json.dumps(record))
    assert read_best(tmp_path) == {
        "version": 20,
        "eval/pass_at_1": 0.5,
        "eval/pass_at_1_low": 0.25,
        "eval/truncated_share": 0.0,
    }
