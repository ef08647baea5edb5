"""What a person sees: names as they were typed, commands that can be copied, and a log that tells how far it is."""

import io
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from treeopo_cli import bars, export, render
from treeopo_storage.conformance import random_tree

from treeopo import stages
from treeopo.config import TrainConfig, load_config
from treeopo.engines.vllm_process import _output_to, stage
from treeopo.evaluation.accuracy import EvalProgress, Scores
from treeopo.evaluation.comparison import compare_models
from treeopo.jobs.train import TrainSummary
from treeopo.run.directory import RunDirectory
from treeopo.search.build import BuildProgress

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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Bars see so many seconds pass."""
    now = 1000.0

    def passing(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(bars, "monotonic", lambda: now)
    return passing


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
    with bars.EvalBar() as bar:
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
def test_a_log_is_told_what_is_waited_for_and_then_where_the_work_stands(
    screen: io.StringIO, clock: Callable[[float], None]
) -> None:
    with bars.EvalBar() as bar:
        clock(31)
        bar.tell()
        stages.enter("starting an engine")
        stages.detail("loading weights")
        clock(40)
        bar.tell()
        for done in (0, 3, 6):
            bar.advance(EvalProgress(done, 9, new=done, tokens=70 * done, reward=done / 3, seconds=10.0 * done))
            bar.tell()
            clock(30)
        so_far = screen.getvalue()
    assert so_far.splitlines() == [
        "getting ready, 0:00:31",
        "starting an engine",
        "starting an engine: loading weights, 0:00:40",
        "solving 0/9 completions, 0:01:11; 0 tokens, 0 tokens/s",
        "solving 3/9 completions, 0:01:41, about 0:01:00 left; 33% right, 210 tokens, 7 tokens/s",
        "solving 6/9 completions, 0:02:11, about 0:00:30 left; 33% right, 420 tokens, 7 tokens/s",
    ]


def test_a_log_is_told_by_itself_while_nothing_happens(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "PLAIN_SECONDS", 0.01)
    with bars.EvalBar():
        stages.enter("starting an engine")
        until = monotonic() + 60
        while "starting an engine, 0:00:0" not in screen.getvalue() and monotonic() < until:
            sleep(0.01)
        assert "starting an engine, 0:00:0" in screen.getvalue()


def test_a_build_s_bar_moves_and_says_how_long_before_any_problem_is_finished(
    screen: io.StringIO, clock: Callable[[float], None]
) -> None:
    started = BuildProgress(expected=160)
    with bars.BuildBar() as bar:
        bar.advance(started, 10, 0.0)
        bar.advance(replace(started, traces=80, solved_traces=8), 10, 0.0)  # known from before the build was stopped
        clock(10)
        known = replace(started, traces=100, solved_traces=10, requests=30, tokens=450)
        bar.advance(known, 10, 10.0)
        bar.tell()
        bar.advance(replace(known, problems=1, solved=1, nodes=7), 10, 10.0)
        bar.tell()
        told = screen.getvalue().splitlines()
    assert told == [
        "searching 0/10 problems, 0:00:10, about 0:00:30 left; 100 of 160 rollouts, 10% solved, 30 completions, "
        "450 tokens, 45 tokens/s",
        "searching 1/10 problems, 0:00:10, about 0:00:30 left; 100 of 160 rollouts, 100% of problems solved, "
        "7 prefixes, 30 completions, 450 tokens, 45 tokens/s",
    ]


def test_time_left_is_told_after_the_first_step_of_a_run_and_follows_its_speed(
    screen: io.StringIO, clock: Callable[[float], None]
) -> None:
    metrics = {"pipeline/seconds_step": 20.0, "learner/tokens": 100.0, "learner/loss": 1.0}
    with bars.TrainBar(30) as bar:
        clock(100)
        stages.enter("step 11 of 30")  # it was resumed
        clock(20)
        bar.advance(11, metrics)
        bar.tell()
        for step in range(12, 21):
            clock(100)
            bar.advance(step, metrics)
        bar.tell()
        told = screen.getvalue().splitlines()
    assert told[1].startswith("training 11/30 steps, 0:02:00, about 0:06:20 left; learner 5 tokens/s")
    assert told[2].startswith("training 20/30 steps, 0:17:00, about 0:16:40 left")


def test_a_terminal_gets_the_bar_alone(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render.console, "_force_terminal", True)
    monkeypatch.setattr(render.console, "_width", 120)
    monkeypatch.setattr(bars, "PLAIN_SECONDS", 0.0)
    with bars.EvalBar() as bar:
        stages.enter("starting an engine")
        bar.advance(EvalProgress(1, 9))
    assert "starting an engine\n" not in screen.getvalue()
    assert "solving 1/9" not in screen.getvalue()  # as in a log
    assert "1/9 completions" in screen.getvalue()


def test_an_engine_that_starts_keeps_its_output_from_the_screen_and_the_screen_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    logger = logging.getLogger("vllm")
    handler = logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    copy = os.dup(1)
    try:
        with _output_to(os.open(log, os.O_WRONLY | os.O_CREAT)):
            os.write(copy, b"the bar\n")
            os.write(1, b"vLLM, in C\n")
            print("vLLM, in Python")
            logger.error("vLLM's log")
        logger.error("later")
    finally:
        logger.removeHandler(handler)
        os.close(copy)
    assert sorted(log.read_text().splitlines()) == ["vLLM's log", "vLLM, in C", "vLLM, in Python"]
    assert sorted(capfd.readouterr().out.splitlines()) == ["later", "the bar"]


def test_what_was_imported_while_an_engine_started_can_still_be_heard_when_the_next_one_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("vllm.imported")
    handlers = []
    for number in (1, 2):
        with _output_to(os.open(tmp_path / str(number), os.O_WRONLY | os.O_CREAT)):
            handlers.append(logging.StreamHandler(sys.stdout))
            logger.addHandler(handlers[-1])
            logger.error("start %d", number)
    for handler in handlers:
        handler.flush()
        logger.removeHandler(handler)
    assert (tmp_path / "1").read_text() == "start 1\n"
    assert (tmp_path / "2").read_text() == "start 2\n" * 2


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("", "importing vLLM"),
        ("INFO [model.py:733] Resolved architecture: Qwen2ForCausalLM\n", "starting its process"),
        ("Resolved architecture: X\nInitializing a V1 LLM engine (v0.32.0)\n", "preparing the device"),
        ("Initializing a V1 LLM engine (v0.32.0)\nStarting to load model /m...\n", "loading weights"),
        ("Starting to load model /m...\nCPU KV cache size: 524,288 tokens\n", "warming up"),
    ],
)
def test_what_an_engine_is_at_is_read_from_its_log(log: str, told: str) -> None:
    assert stage(log) == told
