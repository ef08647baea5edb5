"""Merged weights beyond the table of kinds (test_adapter_table.py): their dtypes, files, ranks and odd bases."""

from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import IA3Config, LoHaConfig, PeftModel, VeraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from tests.adapter_kinds import random_mixture
from tests.adapters import WEIGHTS, adapter_of, command, evaluated, load, logits, lora, of_peft
from tests.tiny_models import byte_tokenizer, random_qwen2
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.vllm_process import choose_weight_format
from treeopo.errors import ModelError
from treeopo.learner.merge import merged_model
from treeopo.learner.rounding import rounded
from treeopo.ports import Engine
from treeopo.records import WeightFormat
from treeopo.run.adapter_files import room_for
from treeopo.run.models import resolve, serve


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("base") / "student")


def both(base: Path, directory: Path, config: Any) -> tuple[Path, Tensor]:
    """An adapter and the logits that PEFT has with it."""
    adapter = adapter_of(base, directory, config)
    return adapter, logits(of_peft(base, adapter))


ON_LAYERS: dict[str, Any] = {
    "plain": lora,
    "rslora": partial(lora, use_rslora=True),
    "dora": partial(lora, use_dora=True),
    "rank_pattern": partial(lora, rank_pattern={"q_proj": 16}),
    "alpha_pattern": partial(lora, alpha_pattern={"v_proj": 1}),
    "bias": partial(lora, bias="all"),
    "lora_bias": partial(lora, lora_bias=True),
    "pissa": partial(lora, init_lora_weights="pissa"),
    "norm": partial(lora, modules_to_save=["norm"]),
    "ia3": partial(
        IA3Config, task_type="CAUSAL_LM", target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "loha": partial(LoHaConfig, r=4, task_type="CAUSAL_LM", target_modules=["q_proj"]),
    "vera": partial(VeraConfig, r=4, task_type="CAUSAL_LM", target_modules=["q_proj"]),
    "trainable_token_indices": partial(lora, trainable_token_indices=[5, 6]),
}
PEFT_SAYS_SO = pytest.mark.filterwarnings("ignore::UserWarning:peft")


@PEFT_SAYS_SO
@pytest.mark.parametrize("kind", sorted(ON_LAYERS.keys() - {"pissa"}))  # which PEFT splits off in the dtype it finds
def test_weights_merged_in_half_precision_are_peft_s_rounded_once(tmp_path: Path, kind: str) -> None:
    base = random_qwen2(tmp_path / "base", dtype=torch.bfloat16)
    adapter = adapter_of(base, tmp_path / "adapter", ON_LAYERS[kind]())
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = PeftModel.from_pretrained(whole, str(adapter)).merge_and_unload(safe_merge=True)
    found = dict(merged_model(str(base), adapter).named_parameters())
    assert found.keys() == dict(wanted.named_parameters()).keys()
    for name, parameter in wanted.named_parameters():
        assert torch.equal(found[name], rounded(parameter, torch.bfloat16)), name


class Recorder:
    """An engine that takes merged weights, and keeps them."""

    weight_format = WeightFormat.MERGED

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    async def publish(self, version: int, path: Path) -> None:
        self.weights.append(load_file(path))


@PEFT_SAYS_SO
@pytest.mark.parametrize("kind", ["plain", "dora", "trainable_token_indices"])
async def test_the_engine_is_given_what_export_writes(tmp_path: Path, kind: str) -> None:
    base = random_qwen2(tmp_path / "base", dtype=torch.bfloat16, tied=False)
    adapter = adapter_of(base, tmp_path / "adapter", ON_LAYERS[kind]())
    command("export", adapter, "--merge", tmp_path / "merged")
    engine = Recorder()
    await serve(cast(Engine, engine), 1, resolve(str(adapter)))
    exported = load_file(tmp_path / "merged/model.safetensors")
    assert engine.weights[0].keys() == exported.keys()
    assert all(torch.equal(engine.weights[0][name], tensor) for name, tensor in exported.items())


def test_ends_that_are_one_weight_are_not_changed_in_a_running_engine_by_embeddings_saved_along(
    student: Path, tmp_path: Path
) -> None:
    adapter = adapter_of(student, tmp_path / "adapter", lora())
    tensors = load_file(adapter / WEIGHTS) | {"base_model.model.model.embed_tokens.weight": torch.zeros(257, 64)}
    save_file(tensors, adapter / WEIGHTS)  # as PEFT's save_embedding_layers leaves it
    with pytest.raises(ModelError, match=r"one weight.* treeopo export \S+adapter --merge DIR"):
        evaluated(adapter)


# huggingface/trl#6007, PrimeIntellect-ai/prime-rl#1408, vllm-project/vllm#2847
def test_room_is_made_for_the_largest_rank_of_all(student: Path, tmp_path: Path) -> None:
    small = adapter_of(student, tmp_path / "small", lora())
    large = adapter_of(student, tmp_path / "large", lora(rank_pattern={"q_proj": 5, "v_proj": 24}))
    assert room_for([small, large]).rank == 24


@PEFT_SAYS_SO
@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (lora(alora_invocation_tokens=[3, 4]), "alora_invocation_tokens"),
        (lora(layer_replication=[[0, 2], [1, 2]]), "layer_replication"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(student: Path, tmp_path: Path, config: Any, complaint: str) -> None:
    adapter = adapter_of(student, tmp_path / "adapter", config)
    with pytest.raises(ModelError, match=complaint):
        evaluated(adapter)
    assert command("export", adapter, "--merge", tmp_path / "merged")[0] == 2


# vllm-project/vllm#2847
def test_a_rank_beyond_what_the_engine_serves_is_merged_or_refused() -> None:
    room = Adapters(rank=1024, versions=2)
    assert choose_weight_format(EngineOptions(), room) is WeightFormat.MERGED
    with pytest.raises(ModelError, match="rank 512, not 1024"):
        choose_weight_format(EngineOptions(publish="adapter"), room)


def test_a_base_that_the_learner_cannot_train_is_merged_all_the_same(tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 32, "vocab_size": 257}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    base = tmp_path / "base"
    torch.manual_seed(0)
    Gemma2ForCausalLM(Gemma2Config(**shape, **heads, final_logit_softcapping=2.0)).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    adapter, wanted = both(base, tmp_path / "adapter", lora())
    code, said = command("export", adapter, "--merge", tmp_path / "merged")
    assert code == 0, said
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), wanted)
    with pytest.raises(ModelError, match="sets final_logit_softcapping"):
        load(base, adapter)


async def test_a_mixture_s_experts_stay_in_the_engine_as_it_loaded_them(tmp_path: Path) -> None:
    mixture = random_mixture(tmp_path / "base")
    adapter = adapter_of(mixture, tmp_path / "adapter", lora())
    command("export", adapter, "--merge", tmp_path / "merged")
    exported = load_file(tmp_path / "merged/model.safetensors")
    assert exported.keys() == load_file(mixture / "model.safetensors").keys()
    engine = Recorder()
    await serve(cast(Engine, engine), 1, resolve(str(adapter)))
    load(mixture, adapter).save_merged(tmp_path / "policy.safetensors")
    wanted = {name: tensor for name, tensor in exported.items() if ".experts." not in name}
    assert len(wanted) < len(exported)
    assert engine.weights[0].keys() == wanted.keys()
    for name, tensor in [*engine.weights[0].items(), *load_file(tmp_path / "policy.safetensors").items()]:
        assert torch.equal(tensor, wanted[name]), name


def test_an_adapter_in_pickled_weights_is_read_as_well(student: Path, tmp_path: Path) -> None:
    adapter, wanted = both(student, tmp_path / "adapter", lora())
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    with pytest.raises(AssertionError, match="an engine was started"):
        evaluated(adapter)
    torch.testing.assert_close(logits(merged_model(str(student), adapter)), wanted)
    (adapter / "adapter_model.bin").write_bytes(b"no pickle")
    with pytest.raises(ModelError, match="the weights of the adapter cannot be read"):
        evaluated(adapter)
