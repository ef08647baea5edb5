"""The commands end to end on a real engine: killed, stopped, resumed, and on models of real architectures.

The models are random, so nothing is ever solved; that training raises accuracy is what `make demo` shows.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM
from treeopo_storage import open_store

from tests.processes import children, engines, is_alive
from tests.tiny_models import random_qwen2
from treeopo.problems.spec import load_problems
from treeopo.trackers.jsonl import read_metrics

pytestmark = pytest.mark.engine

PROBLEMS = 160
STEPS = 12
SEARCH = ["--rollouts", "4", "--set", "search.max_step_tokens=8", "--set", "search.max_solution_tokens=16"]
ROLLOUT = ["--set", "rollout.max_prompt_tokens=300", "--set", "rollout.max_sequence_tokens=330"]


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """As from a terminal: a test run in the background of a shell would hand down that Ctrl-C is ignored."""
    command = [sys.executable, "-m", "treeopo_cli.main", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, err[-3000:]
    assert "Traceback" not in err
    return out


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for a condition, and fail if `process` ends before it holds."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("job")
    random_qwen2(directory / "model")
    return directory


@pytest.fixture(scope="module")
def store(workplace: Path) -> Path:
    """Built by a process that was killed, one that was stopped, and one that came to the end."""
    path = workplace / "trees.zarr"
    command = ["mcts", "build", "--teacher", "model", "--limit", PROBLEMS, "-o", path, *SEARCH]

    def committed() -> int:
        return open_store(path).problem_count if (path / "zarr.json").exists() else 0

    killed = start(*command, cwd=workplace)
    wait_until(lambda: committed() >= 16, killed)
    orphans = engines(killed.pid)
    assert orphans
    killed.kill()
    killed.communicate()
    wait_until(lambda: not any(map(is_alive, orphans)))  # an engine dies with the process that started it
    assert 16 <= committed() < PROBLEMS
    before = committed()
    stopped = start(*command, cwd=workplace)
    wait_until(lambda: committed() > before, stopped)
    stopped.send_signal(signal.SIGINT)
    assert "the same command goes on" in finish(stopped, code=130).replace("\n", " ")
    assert committed() < PROBLEMS
    out = finish(start(*command, cwd=workplace))
    assert "No prefix is informative" in out
    return path


@pytest.fixture(scope="module")
def run(workplace: Path, store: Path) -> Path:
    """Trained by a process that was killed, one that was stopped, and one that came to the end."""
    path = workplace / "run"

    def steps() -> int:
        return len(read_metrics(path / "metrics.jsonl"))

    first = ["train", store, "--student", "model", "-o", path, "--steps", STEPS, *ROLLOUT]
    killed = start(*first, "--set", "checkpoint_every=2", cwd=workplace)
    wait_until(lambda: steps() >= 3, killed)
    killed.kill()
    killed.communicate()
    before = steps()
    assert before < STEPS

    stopped = start("train", "--resume", path, cwd=workplace)
    wait_until(lambda: steps() > before, stopped)
    running = children(stopped.pid)
    assert running
    stopped.send_signal(signal.SIGINT)
    assert f"--resume {path}" in finish(stopped).replace("\n", "")
    wait_until(lambda: not any(map(is_alive, running)))
    assert steps() < STEPS

    out = finish(start("train", "--resume", path, cwd=workplace))
    assert "No prefix was informative" in out.replace("\n", " ")
    return path


def test_a_killed_build_continues_with_no_problem_lost_or_searched_twice(store: Path) -> None:
    expected = [problem.id for problem in load_problems("staged-arithmetic:easy:train", PROBLEMS)]
    assert open_store(store).problem_ids() == expected


def test_every_trace_is_kept_with_the_teacher_s_log_probabilities(store: Path) -> None:
    tree = open_store(store).problem(0)
    prompt = tree.token_offsets[1]
    assert tree.visits[0] == 4
    assert (tree.teacher_logprobs[prompt:] <= 0).all()
    assert (tree.reward[tree.terminal] == 0).all()


def test_a_killed_and_stopped_run_has_every_step_once(run: Path) -> None:
    steps = read_metrics(run / "metrics.jsonl")
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert max(step["rollout/staleness_max"] for step in steps) <= 1
    assert all(step["engine/peak_mib"] > 50 and step["learner/peak_mib"] > 50 for step in steps)


def test_the_adapter_it_leaves_loads_in_plain_peft(run: Path, workplace: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(workplace / "model")
    adapter = PeftModel.from_pretrained(base, str(run / "adapter"))
    assert adapter.peft_config["default"].r == 16
    assert (run / "adapter" / "tokenizer.json").is_file()


def test_a_run_is_evaluated_against_its_base(run: Path, workplace: Path) -> None:
    out = finish(
        start("eval", run, "--against", "base", "--limit", 8, "--samples", 1, "-o", "scores",
              "--set", "max_new_tokens=16", cwd=workplace)
    )  # fmt: skip
    assert "greedy difference by problem" in " ".join(out.split())
    (evaluation,) = json.loads((workplace / "scores" / "scores.json").read_text())
    assert [row["greedy"]["estimate"] for row in evaluation["scores"]] == [0.0, 0.0]
    completions = (workplace / "scores" / "completions.jsonl").read_text().splitlines()
    assert len(completions) == 8 * 2 * 2
