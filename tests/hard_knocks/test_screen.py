"""What a person sees: names as they were typed, commands that can be copied, and a log that tells how far it is."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from treeopo_cli import export, render
from treeopo_storage.conformance import random_tree

from treeopo.config import TrainConfig, load_config
from treeopo.evaluation.accuracy import Scores
from treeopo.evaluation.comparison import compare_models
from treeopo.jobs.train import TrainSummary
from treeopo.run.directory import RunDirectory

# Textualize/rich#2636, #3203, wkentaro/git-hunk#14, agsaru/Repo2Readme#187: `[x` is a style, `[/` ends one and raises,
# and a word between colons is a picture
NAMES = ["runs/[lr=1e-4]", "runs/a[b]", "runs/x[/b]", "[red]t.zarr", "out[/]", "runs/[0]", "a\\[b]\\", ":smile: x"]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What would be printed, in a narrow place that is no terminal."""
    shown = io.StringIO()
    monkeypatch.setattr(render.console, "_file", shown)  # `file` would be put back as a fixed one
    monkeypatch.setattr(render.console, "_width", 40)
    return shown


def summary(run: RunDirectory, complete: bool) -> TrainSummary:
    best = {"version": 3, "eval/pass_at_1": 0.5, "eval/pass_at_1_low": 0.4, "eval/pass_at_1_high": 0.6}
    return TrainSummary(4, complete, 4, 0, 10.0, 0.0, "25 [solved] traces", run.adapter, best)


def shell(name: str) -> str:
    """As it is typed in a shell."""
    return name if name == "t.zarr" else f"'{name}'"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("complete", [True, False])
def test_a_run_s_name_is_shown_as_typed_and_its_next_command_can_be_copied(
    screen: io.StringIO, name: str, complete: bool
) -> None:
    run = RunDirectory(Path(name), load_config(TrainConfig, file=None, flags={"store": "t.zarr", "output": name}))
    render.train_summary(run, summary(run, complete))
    lines = screen.getvalue().splitlines()
    assert any("25 [solved] traces" in line for line in lines)
    assert any(line.endswith(f"at step 3: {name}/best") for line in lines)
    if complete:
        assert f"adapter: {name}/adapter  (PEFT format)" in lines
        assert f"next: treeopo eval {shell(name)} --against base" in lines
    else:
        assert f"stopped with a checkpoint; go on with: treeopo train --resume {shell(name)}" in lines


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_model_s_name_is_shown_as_typed(
    screen: io.StringIO, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treeopo.jobs.export.export_merged", lambda *arguments: None)
    export.export(Path("run"), Path(name), None)
    assert screen.getvalue().splitlines() == [f"merged model: {name}", f"next: treeopo eval {shell(name)}"]


@pytest.mark.parametrize("name", NAMES)
def test_notices_problems_and_models_are_shown_as_they_are(screen: io.StringIO, name: str) -> None:
    with render.EvalBar() as bar:
        bar.notify(f"loading {name}")
    scores = Scores(("a", "b"), np.array([1.0, 0.0]), np.zeros((2, 0)), ((), ()), truncated=1)
    render.evaluation(compare_models(name, [name], [scores]))
    said = screen.getvalue()
    assert f"loading {name}" in said
    assert f"{name}: 2 problems" in said
    assert name in said.split("intervals")[1]


def test_steps_and_questions_hold_brackets_of_their_own(screen: io.StringIO) -> None:
    tree = replace(random_tree("p", seed=3), question="Is [/x] in [1, 2] :100:?")
    render.problem_tree(tree)
    assert "Is [/x] in [1, 2] :100:?" in screen.getvalue()


# tqdm/tqdm#506, wolph/python-progressbar#204: a log that shows progress only when all is over
def test_a_log_is_told_where_the_work_stands_now_and_then(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 12))
    monkeypatch.setattr(render, "monotonic", lambda: float(next(clock)))
    with render.EvalBar() as bar:
        for done in range(1, 7):
            bar.advance(done, 9)
        so_far = screen.getvalue()
    told = [line for line in so_far.splitlines() if line.startswith("solving ")]
    assert told == ["solving 3/9 completions", "solving 6/9 completions"]


def test_a_terminal_gets_the_bar_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(render.console, "_file", shown)  # `file` would be put back as a fixed one
    monkeypatch.setattr(render.console, "_force_terminal", True)
    monkeypatch.setattr(render, "PLAIN_SECONDS", 0.0)
    with render.EvalBar() as bar:
        bar.advance(1, 9)
    assert "solving 1/9" not in shown.getvalue()
