"""The example with a real model: its commands exist, what is done is not done again, its table says what was found."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from examples.smollm2 import real
from tests.unit.test_documentation import complaint


def test_every_stage_is_a_command_that_exists(tmp_path: Path) -> None:
    commands = [list(map(str, stage.command())) for stage in real.stages(tmp_path)]
    treeopo = [words for program, *words in commands if program == str(real.TREEOPO)]
    assert {words[0] for words in treeopo} == {"train", "export", "mcts", "eval"}
    assert [complaint(words) for words in treeopo] == [None] * len(treeopo)
    (fetch,) = [words for program, *words in commands if program != str(real.TREEOPO)]
    assert Path(fetch[0]).exists()


def test_a_training_that_was_stopped_goes_on(tmp_path: Path) -> None:
    (stage,) = [each for each in real.stages(tmp_path) if each.name == "tree-opo"]
    assert "--method" in stage.command()
    (tmp_path / "tree-opo").mkdir()
    (tmp_path / "tree-opo" / "config.json").write_text("{}")
    assert stage.command()[1:] == ["train", "--resume", tmp_path / "tree-opo"]


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, statuses = list[str](), iter([0, 0, 7, 0])

    def call(command: list[str], check: bool) -> SimpleNamespace:
        run.append(" ".join(command))
        return SimpleNamespace(returncode=next(statuses, 0))

    monkeypatch.setattr(subprocess, "run", call)
    with pytest.raises(SystemExit, match=r"student, merged: stopped, status 7; the same command goes on from here"):
        real.work(tmp_path)
    assert len(run) == 3
    real.work(tmp_path)
    assert len(run) == 3 + len(real.stages(tmp_path)) - 2
    assert "export" in run[3]
    real.work(tmp_path)
    assert len(run) == 1 + len(real.stages(tmp_path))


def test_the_table_compares_problem_by_problem(tmp_path: Path) -> None:
    def scores(name: str, solved: int) -> None:
        directory = tmp_path / "scores" / name
        directory.mkdir(parents=True)
        rows = [
            {
                "problem_id": f"p{problem:02}",
                "sample": sample,
                "reward": float(problem < solved and sample < 2),
                "answer": "7",
                "truncated": False,
            }
            for sample in (2, 0, 1)
            for problem in range(40)
        ]
        (directory / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    for name, solved in (("student", 10), ("teacher", 40), ("tree-opo", 30), ("grpo", 20)):
        scores(name, solved)
    table = real.table(tmp_path)
    assert "| student | 0.250 (" in table
    assert "| tree-opo | 0.750 (" in table
    assert "| 0.375 (" in table  # one of two samples of 30 problems
    assert "| 0.500 (" in table.split("| tree-opo |")[1].splitlines()[0]
    assert "tree-opo minus grpo, as many completions: greedy 0.250 (" in table
