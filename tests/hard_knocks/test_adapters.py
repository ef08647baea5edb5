"""Adapters and their bases as people have them: what is loaded is what PEFT computes, or one line refuses it.

Models are random and of a few thousand parameters; nothing here starts an engine.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from treeopo_storage import TreeStore

from tests.adapters import WEIGHTS, adapter_of, command, evaluated, load, lora
from tests.student_store import student_and_store
from tests.tiny_models import random_qwen2
from treeopo.config import TrainConfig, load_config
from treeopo.errors import ModelError
from treeopo.jobs.train import train
from treeopo.learner.adapters import check_servable
from treeopo.run.directory import RunDirectory


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("base") / "student")


@pytest.fixture(scope="module")
def trained(searched_store: TreeStore, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of two steps of sft over a student of its own; no engine."""
    directory = tmp_path_factory.mktemp("trained")
    student, store = student_and_store(directory, searched_store)
    flags = {"store": store, "output": directory / "run", "student": str(student), "method": "sft", "steps": 2}
    run = RunDirectory.create(load_config(TrainConfig, file=None, flags={**flags, "rollout.batch_size": 8}))
    assert train(run, lambda notice: None, lambda step, metrics: None).complete
    return run


@pytest.fixture
def run(trained: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy to spoil."""
    return RunDirectory.open(Path(shutil.copytree(trained.path, tmp_path / "run")))


def rewritten(adapter: Path, directory: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    shutil.copytree(adapter, directory)
    save_file(change(load_file(adapter / WEIGHTS)), directory / WEIGHTS)
    return directory


# huggingface/peft#1452, hiyouga/LLaMA-Factory#2793
@pytest.mark.parametrize("resumed", [False, True])
def test_no_save_of_an_adapter_asks_the_hub(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the hub was asked")

    policy = load(student)
    if resumed:
        policy.save_adapter(tmp_path / "before")
        policy = load(student, tmp_path / "before")
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", refuse)
    policy.model.peft_config["default"].base_model_name_or_path = "org/tiny"  # as of a model from the hub
    policy.save_adapter(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"


def _wrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("model.model.layers", "model.model.language_model.layers"): x for name, x in tensors.items()}


def _compiled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("base_model.model.", "base_model.model._orig_mod."): x for name, x in tensors.items()}


def _first_half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in tensors.items() if ".layers.0." in name}


def _with_one_more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    extra = "base_model.model.model.layers.0.mlp.gate_proj.lora_A.weight"
    return {**tensors, extra: torch.zeros(4, 64)}


def _of_another_width(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x[:, :-1].contiguous() if "lora_A" in name else x for name, x in tensors.items()}


LAYERS = "base_model.model.model.layers"
MISFITS = {
    "a wrapper in the names": (_wrapped, r"no place for its tensor base_model.model.model.language_model"),
    "torch.compile's prefix": (_compiled, r"no place for its tensor base_model.model._orig_mod"),
    "one layer alone": (_first_half, rf"lacks the tensor {LAYERS}.1.self_attn.q_proj.lora_\S+ and 3 more"),
    "a tensor too many": (_with_one_more, rf"no place for its tensor {LAYERS}.0.mlp.gate_proj"),
    "another width": (_of_another_width, rf"size mismatch for {LAYERS}.0.self_attn"),
}  # fmt: skip


# vllm-project/vllm#34186, hiyouga/LLaMA-Factory#10294, huggingface/peft#1932, #2118, #2699
@pytest.mark.parametrize("misfit", MISFITS)
def test_an_adapter_of_another_model_is_refused_before_an_engine_starts(
    student: Path, tmp_path: Path, misfit: str
) -> None:
    change, complaint = MISFITS[misfit]
    adapter = rewritten(adapter_of(student, tmp_path / "made", lora()), tmp_path / "changed", change)
    for use in (lambda: evaluated(adapter), lambda: load(student, adapter)):
        with pytest.raises(ModelError, match=complaint) as error:
            use()
        assert str(adapter) in str(error.value)
        assert str(student) in str(error.value)
        assert "\n" not in str(error.value)


# huggingface/transformers#36480
@pytest.mark.parametrize(("trained", "named", "complaint"), [(4, 2, "no place for"), (2, 4, "lacks the tensor")])
def test_layers_are_counted(tmp_path: Path, trained: int, named: int, complaint: str) -> None:
    adapter = adapter_of(random_qwen2(tmp_path / "deep", layers=trained), tmp_path / "adapter", lora())
    with pytest.raises(ModelError, match=complaint):
        check_servable(str(random_qwen2(tmp_path / "shallow", layers=named)), adapter)


def test_an_adapter_that_fits_is_let_through(student: Path, tmp_path: Path) -> None:
    check_servable(str(student), adapter_of(student, tmp_path / "adapter", lora()))
    with pytest.raises(AssertionError, match="an engine was started"):
        evaluated(tmp_path / "adapter")


def test_a_run_s_spoilt_adapter_is_neither_merged_nor_gone_on_with(run: RunDirectory, tmp_path: Path) -> None:
    for adapter in (run.adapter, run.checkpoints / "step-000002" / "adapter"):
        save_file(_wrapped(load_file(adapter / WEIGHTS)), adapter / WEIGHTS)
    (run.checkpoints / "step-000002" / "files.json").unlink()  # as of version 0.1: by its sizes it is damaged
    code, said = command("export", run.path, "--merge", tmp_path / "merged")
    assert (code, "language_model" in said) == (2, True), said
    assert not (tmp_path / "merged").exists()
    shutil.rmtree(run.adapter)  # as if it had been stopped
    code, said = command("train", "--resume", run.path)
    assert (code, "language_model" in said) == (2, True), said
    assert not run.adapter.exists()


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"])
def test_weights_that_are_not_there_are_not_looked_for_on_the_hub(
    student: Path, tmp_path: Path, content: bytes
) -> None:
    adapter = adapter_of(student, tmp_path / "adapter", lora())
    (adapter / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelError, match="the weights of the adapter cannot be read"):
        evaluated(adapter)
    (adapter / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="holds no weights of an adapter"):
        evaluated(adapter)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_diverged_is_refused_by_a_tensor_s_name(student: Path, tmp_path: Path, value: float) -> None:
    def spoilt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        next(tensor for name, tensor in tensors.items() if "layers.1" in name)[0, 0] = value
        return tensors

    adapter = rewritten(adapter_of(student, tmp_path / "made", lora()), tmp_path / "changed", spoilt)
    for use in (lambda: evaluated(adapter), lambda: load(student, adapter)):
        with pytest.raises(ModelError, match=rf"tensor {LAYERS}.1\S+ holds infinite values or NaN"):
            use()
