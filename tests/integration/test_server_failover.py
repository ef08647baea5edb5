"""Two real servers, one of them killed while a student trains: the run goes on, no batch lost or trained twice."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers import Server
from tests.tiny_models import random_qwen2
from treeopo.trackers.jsonl import read_metrics

pytestmark = [pytest.mark.engine, pytest.mark.slow]

STEPS = 8
SEARCH = ["--rollouts", "4", "--set", "search.max_step_tokens=8", "--set", "search.max_solution_tokens=16"]
ROLLOUT = ["--set", "rollout.max_prompt_tokens=300", "--set", "rollout.max_sequence_tokens=500"]


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "treeopo_cli.main", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("publish", ["adapter", "merged"])
def test_a_run_survives_one_of_its_two_servers(publish: str, tmp_path: Path) -> None:
    model = random_qwen2(tmp_path / "model")
    doomed, other = (Server(model, tmp_path / f"{name}.log", max_model_len=512) for name in ("doomed", "other"))
    try:
        doomed.wait()
        other.wait()
        engines = ["--engine", doomed.url, "--engine", other.url]
        store, run = tmp_path / "trees.zarr", tmp_path / "run"
        build = start("mcts", "build", "--teacher", model, "--limit", 4, "-o", store, *SEARCH, *engines)
        assert build.wait(timeout=300) == 0, build.communicate()[1][-3000:]
        train = start(
            *("train", store, "--student", model, "-o", run, "--steps", STEPS, "--publish", publish, *ROLLOUT, *engines)
        )
        deadline = time.monotonic() + 300
        while len(read_metrics(run / "metrics.jsonl")) < 2:
            assert train.poll() is None, train.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        doomed.kill()
        _, err = train.communicate(timeout=300)
        assert train.returncode == 0, err[-3000:]
        assert f"{doomed.url} is lost" in err.replace("\n", " ")
        assert [step["step"] for step in read_metrics(run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    finally:
        doomed.kill()
        other.kill()
