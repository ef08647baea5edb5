"""Bad input is one clear line on standard error and a non-zero exit, never a traceback, and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
from treeopo_storage import StoreMeta, create_store

from tests.tiny_models import random_qwen2

pytestmark = pytest.mark.processes


def treeopo(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "treeopo_cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "nowhere.zarr", "--student", "MODEL"], "nowhere.zarr"),
        (["inspect-tree", "nowhere.zarr"], "nowhere.zarr"),
        (["mcts", "build", "--teacher", "./no-model"], "./no-model"),
        (["eval", "./no-model"], "./no-model"),
        (["mcts", "build", "--problems", "nothing.jsonl", "--teacher", "MODEL"], "nothing.jsonl"),
        (["mcts", "build", "--problems", "broken.jsonl", "--teacher", "MODEL"], "broken.jsonl"),
        (["mcts", "build", "--rollouts", "0"], "rollouts is 0"),
        (["train", "empty.zarr", "--set", "advantage.baseline_rollouts=8"], "only mc takes extra rollouts"),
        (["train", "empty.zarr", "--set", "rollout.max_stale=2"], "unknown setting rollout.max_stale"),
        (["train", "empty.zarr", "--set", "oops"], "--set oops: write it as name=value"),
        (["train", "empty.zarr", "--config", "absent.toml"], "absent.toml: cannot be read"),
        (["train", "--resume", "."], "no run there"),
        (["train", "empty.zarr", "--set", "learner.fsdp=true"], "start it by torchrun"),
        (["train", "empty.zarr", "--student", "MODEL"], "the store's tokens are of tokenizer"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, model: Path, arguments: list[str], expected: str) -> None:
    (tmp_path / "broken.jsonl").write_text('{"question": "2 + 2?", "answer": "#### 4"}\n{"question": "no answer"}\n')
    create_store(tmp_path / "empty.zarr", StoreMeta(tokenizer_fingerprint="another", teacher="somebody"))
    before = sorted(tmp_path.iterdir())
    arguments = [str(model) if argument == "MODEL" else argument for argument in arguments]
    assert expected in complaint(treeopo(*arguments, cwd=tmp_path))
    assert sorted(tmp_path.iterdir()) == before


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    result = treeopo("train", "--stepz", "3", cwd=tmp_path)
    assert result.returncode == 2
    assert "--stepz" in result.stderr
    assert "Traceback" not in result.stderr
