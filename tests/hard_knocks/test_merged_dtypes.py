"""Merged weights have the dtype of the tensors that the base's files hold, whatever its configuration says."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.adapters import adapter_of, command, lora
from tests.tiny_models import random_qwen2


def merged(base: Path, directory: Path) -> dict[str, torch.Tensor]:
    adapter = adapter_of(base, directory / "adapter", lora())
    code, said = command("export", adapter, "--merge", directory / "merged")
    assert code == 0, said
    return load_file(directory / "merged/model.safetensors")


# axolotl-ai-cloud/axolotl#1510, modelscope/ms-swift#841
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("said", [{}, {"torch_dtype": "bfloat16"}, {"dtype": "float32"}, {"dtype": "float16"}], ids=str)
def test_the_configuration_does_not_decide(tmp_path: Path, stored: torch.dtype, said: dict[str, str]) -> None:
    base = random_qwen2(tmp_path / "base", dtype=stored)
    config = json.loads((base / "config.json").read_text())
    del config["dtype"]
    (base / "config.json").write_text(json.dumps(config | said))
    assert {tensor.dtype for tensor in merged(base, tmp_path).values()} == {stored}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == stored


def test_each_tensor_keeps_its_own(tmp_path: Path) -> None:
    base = random_qwen2(tmp_path / "base", dtype=torch.bfloat16)
    tensors = load_file(base / "model.safetensors")
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in tensors.items()}
    save_file(mixed, base / "model.safetensors", metadata={"format": "pt"})
    found = merged(base, tmp_path)
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: x.dtype for name, x in mixed.items()}
    untouched = {name for name in mixed if "q_proj.weight" not in name and "v_proj.weight" not in name}
    assert all(torch.equal(found[name], mixed[name]) for name in untouched)


def test_a_base_in_several_files_is_read_as_one(tmp_path: Path) -> None:
    base = random_qwen2(tmp_path / "one", dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert not (tmp_path / "many/model.safetensors").exists()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "many" / name).write_bytes((base / name).read_bytes())
    assert {tensor.dtype for tensor in merged(tmp_path / "many", tmp_path).values()} == {torch.bfloat16}


def test_a_base_without_safetensors_is_merged_in_what_it_says(tmp_path: Path) -> None:
    base = random_qwen2(tmp_path / "base", dtype=torch.bfloat16)
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    assert {tensor.dtype for tensor in merged(base, tmp_path).values()} == {torch.bfloat16}
