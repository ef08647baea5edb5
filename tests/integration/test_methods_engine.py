"""Every method that samples takes its steps on a real engine; a teacher is asked by URL as well."""

import subprocess
import sys
from pathlib import Path

import pytest
from treeopo_storage import StoreMeta, create_store, open_writer
from treeopo_storage.conformance import random_tree

from tests.servers import Server
from tests.tiny_models import VOCABULARY, random_qwen2
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.methods import METHODS, Need
from treeopo.trackers.jsonl import read_metrics

pytestmark = [pytest.mark.engine, pytest.mark.slow]

STEPS = 3
SAMPLING = [name for name, method in METHODS.items() if Need.ENGINE in method.needs]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random student, a random teacher, and a store of random trees in their tokenizer's ids."""
    directory = tmp_path_factory.mktemp("methods")
    random_qwen2(directory / "model")
    random_qwen2(directory / "teacher", layers=1)
    fingerprint = ModelTokenizer(str(directory / "model")).fingerprint
    create_store(directory / "trees.zarr", StoreMeta(tokenizer_fingerprint=fingerprint, teacher="teacher"))
    with open_writer(directory / "trees.zarr") as writer:
        writer.append([random_tree(f"p{seed}", seed, nodes=12, vocabulary=VOCABULARY - 1) for seed in range(20)])
    return directory


def train(workplace: Path, name: str, run: str, *options: str) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "treeopo_cli.main", "train", "trees.zarr", "--student", "model", "-o", run]
    command += ["--method", name, "--steps", str(STEPS), *options]
    settings = ["rollout.max_prompt_tokens=100", "rollout.max_sequence_tokens=200"]
    if Need.CRITIC in METHODS[name].needs:
        settings.append("critic.warmup_steps=1")
    for setting in settings:
        command += ["--set", setting]
    ended = subprocess.run(command, cwd=workplace, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (workplace / run / "adapter" / "adapter_model.safetensors").exists()
    return read_metrics(workplace / run / "metrics.jsonl")


@pytest.mark.parametrize("name", SAMPLING)
def test_a_method_learns_from_a_real_engine(workplace: Path, name: str) -> None:
    steps = train(workplace, name, name)
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert max(step["rollout/staleness_max"] for step in steps) <= 1
    if Need.TEACHER in METHODS[name].needs:
        assert any(step["learner/grad_norm"] + step.get("learner/kl_grad_norm", 0.0) > 0 for step in steps)


def test_a_teacher_by_url_says_what_a_loaded_one_says(workplace: Path) -> None:
    server = Server(workplace / "teacher", workplace / "log", max_model_len=256)
    try:
        url = server.wait().url
        precise = ("--set", "engine.dtype=float32", "--sync")
        asked = train(workplace, "reinforce-kl", "asked", "--teacher-engine", url, *precise)
        loaded = train(workplace, "reinforce-kl", "loaded", *precise)
    finally:
        server.kill()
    for one, other in zip(asked, loaded, strict=True):
        assert one["rollout/teacher_kl"] == pytest.approx(other["rollout/teacher_kl"], rel=1e-3)
        assert one["learner/loss"] == pytest.approx(other["learner/loss"], rel=1e-2, abs=1e-3)
