"""What a run leaves loads elsewhere: the adapter in PEFT, the merged model in transformers, both with a card."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from treeopo_cli.main import app
from treeopo_storage import TreeStore
from typer.testing import CliRunner

from tests.student_store import student_and_store
from tests.tiny_models import random_qwen2
from treeopo.config import TrainConfig, load_config
from treeopo.errors import ModelError, RunError
from treeopo.jobs.export import export_merged
from treeopo.jobs.train import train
from treeopo.run.directory import RunDirectory


@pytest.fixture(scope="module")
def run(searched_store: TreeStore, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Trained by sft for three steps, the whole way through `jobs.train`; no engine."""
    directory = tmp_path_factory.mktemp("export")
    student, store = student_and_store(directory, searched_store)
    flags = {
        "store": store, "output": directory / "run", "student": str(student), "method": "sft", "steps": 3,
        "learner.optimizer.learning_rate": 1e-2, "rollout.batch_size": 8,
    }  # fmt: skip
    created = RunDirectory.create(load_config(TrainConfig, file=None, flags=flags))
    summary = train(created, lambda notice: None, lambda step, metrics: None)
    assert summary.complete
    assert summary.informative_steps == 3
    return created


@pytest.fixture(scope="module")
def merged(run: RunDirectory) -> Path:
    directory = run.path.parent / "merged"
    result = CliRunner().invoke(app, ["export", str(run.path), "--merge", str(directory)])
    assert result.exit_code == 0, result.output
    return directory


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model.eval()(torch.arange(3, 20)[None]).logits
    return output


def test_the_merged_model_is_the_adapter_on_its_base(run: RunDirectory, merged: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(run.path.parent / "student")
    before = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, str(run.adapter)))
    assert (adapted - before).abs().max() > 1e-2  # three steps have changed it
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(merged)), adapted, rtol=1e-4, atol=1e-5)


def test_it_is_a_whole_model_in_safetensors_alone(run: RunDirectory, merged: Path) -> None:
    names = {path.name for path in merged.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if re.search(r"\.(bin|pt|pth|pkl)$|lora|adapter", name)]
    assert not list(run.adapter.glob("*.bin"))
    text = "x\n\n#### 7"
    student = AutoTokenizer.from_pretrained(run.path.parent / "student")
    assert AutoTokenizer.from_pretrained(merged)(text).input_ids == student(text).input_ids


def test_the_dtype_is_the_base_s(run: RunDirectory, tmp_path: Path) -> None:
    from treeopo.learner.export import save_merged_model

    base = random_qwen2(tmp_path / "half", dtype=torch.bfloat16)
    save_merged_model(str(base), run.adapter, str(base), tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


@pytest.mark.parametrize(("place", "library"), [("adapter", "peft"), ("merged", "transformers")])
def test_each_carries_a_card_with_the_run_s_settings_and_figures(
    run: RunDirectory, merged: Path, place: str, library: str
) -> None:
    card = ModelCard.load(run.adapter / "README.md" if place == "adapter" else merged / "README.md")
    assert card.data.library_name == library
    assert card.data.base_model == str(run.path.parent / "student")
    assert {"treeopo", "sft"} <= set(card.data.tags)
    settings = re.search(r"```json\n(.*?)\n```", card.content, re.DOTALL)
    assert settings
    assert json.loads(settings[1]) == run.config.model_dump(mode="json")
    assert "| learner/loss |" in card.content
    assert "transformers 5" in card.content


def test_an_export_never_writes_over_anything(run: RunDirectory, merged: Path) -> None:
    weights = (merged / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="is there already"):
        export_merged(run.path, merged)
    assert (merged / "model.safetensors").read_bytes() == weights


def test_a_damaged_adapter_leaves_nothing_half_written(run: RunDirectory, tmp_path: Path) -> None:
    weights = run.adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelError, match="the weights of the adapter cannot be read"):
            export_merged(run.path, tmp_path / "out")
        assert not list(tmp_path.iterdir())
    finally:
        weights.write_bytes(whole)


def test_the_run_records_versions_and_machine(run: RunDirectory) -> None:
    record = json.loads((run.path / "config.json").read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert record["machine"]["device"]
    assert RunDirectory.open(run.path).config == run.config
