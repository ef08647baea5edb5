"""`treeopo train` evaluates the version that serves, beside training, on a real engine, and keeps the best."""

import json
import sys
from pathlib import Path
from subprocess import run

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.tiny_models import random_qwen2, random_store
from treeopo.trackers.jsonl import read_metrics

pytestmark = pytest.mark.engine


def treeopo(*arguments: object, cwd: Path) -> str:
    command = [sys.executable, "-m", "treeopo_cli.main", *map(str, arguments)]
    result = run(command, cwd=cwd, capture_output=True, text=True, timeout=400, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_versions_are_evaluated_beside_training_and_the_best_is_an_adapter(tmp_path: Path) -> None:
    random_store(tmp_path / "trees.zarr", random_qwen2(tmp_path / "model"))
    rollout = ["--set", "rollout.max_prompt_tokens=300", "--set", "rollout.max_sequence_tokens=330"]
    evaluation = [
        "--eval-problems",
        "staged-arithmetic:easy:validation",
        "--eval-every",
        2,
        "--set",
        "evaluation.limit=9",
    ]
    out = treeopo("train", "trees.zarr", "--student", "model", "--steps", 5, *rollout, *evaluation, cwd=tmp_path)
    run_directory = tmp_path / "runs" / "latest"
    evaluations = read_metrics(run_directory / "evaluations.jsonl")
    assert [row["step"] for row in evaluations] == [0, 2, 4, 5]
    assert all(0 <= row["eval/pass_at_1_low"] <= row["eval/pass_at_1"] <= 1 for row in evaluations)
    assert [row["step"] for row in read_metrics(run_directory / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert json.loads((run_directory / "best" / "evaluation.json").read_text())["version"] == 0  # random: all are alike
    assert "best: pass@1" in out
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    PeftModel.from_pretrained(base, str(run_directory / "best"))
