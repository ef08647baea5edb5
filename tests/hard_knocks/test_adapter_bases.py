"""The base under an adapter is the one that adapter_config.json names, or one line says how to give another."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.adapters import adapter_of, command, evaluated, load, logits, lora, of_peft
from tests.tiny_models import random_qwen2
from treeopo.errors import ConfigError, ModelError, RunError
from treeopo.run.models import resolve


def saying(adapter: Path, **changes: Any) -> Path:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return adapter


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return adapter_of(random_qwen2(tmp_path / "base"), tmp_path / "adapter", lora())


# fastino-ai/GLiNER2#108, huggingface/lighteval#1301, mlflow/mlflow#22052
@pytest.mark.parametrize("gone", ["./tiny", "/scratch/gone", "../models/tiny", "models/team/tiny", "~/no/such/model"])
def test_a_base_that_is_not_there_is_named_with_its_file_its_key_and_the_way_out(adapter: Path, gone: str) -> None:
    saying(adapter, base_model_name_or_path=gone)
    for use in (evaluated, lambda name: resolve(str(name))):
        with pytest.raises(ModelError) as error:
            use(adapter)
        for part in (f"{adapter}/adapter_config.json", "base_model_name_or_path", repr(gone), "--base"):
            assert part in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["", None, [], ["a"], 3, {"name": "a"}])
def test_a_base_that_is_no_name_is_refused(adapter: Path, value: Any) -> None:
    with pytest.raises(ModelError, match=r"adapter_config.json.*base_model_name_or_path.*--base"):
        evaluated(saying(adapter, base_model_name_or_path=value))


@pytest.mark.parametrize("content", ["[]", "3", "null", "", "{torn", '"text"'])
def test_a_description_that_is_none_is_refused(adapter: Path, content: str) -> None:
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(ModelError, match="not the description of a PEFT adapter"):
        evaluated(adapter)


def test_a_base_that_moved_can_be_given(adapter: Path, tmp_path: Path) -> None:
    wanted = logits(of_peft(tmp_path / "base", adapter))
    moved = shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(ModelError, match="no such directory"):
        evaluated(adapter)
    with pytest.raises(AssertionError, match="an engine was started"):
        evaluated(adapter, base=str(moved), against="base")
    code, said = command("export", adapter, "--merge", tmp_path / "merged", "--base", moved)
    assert code == 0, said
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), wanted)


def test_a_base_that_is_given_must_be_there_and_fit(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"--base is './other', and there is no such directory seen from"):
        evaluated(adapter, base="./other")
    with pytest.raises(ModelError, match="lacks the tensor"):
        evaluated(adapter, base=str(random_qwen2(tmp_path / "deep", layers=3)))
    with pytest.raises(ConfigError, match="none is evaluated"):
        evaluated(tmp_path / "base", base=str(tmp_path / "base"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with two revisions of org/tiny, of which `main` is the second."""
    snapshots = tmp_path / "hub/models--org--tiny/snapshots"
    for seed, revision in enumerate(("1" * 40, "2" * 40)):
        base = random_qwen2(snapshots / revision)
        model = AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            model.model.layers[0].self_attn.o_proj.weight.mul_(1 + seed)
        model.save_pretrained(base)
    refs = tmp_path / "hub/models--org--tiny/refs"
    refs.mkdir()
    (refs / "main").write_text("2" * 40)
    (refs / "first").write_text("1" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(name, str(tmp_path / "hub"))
    return snapshots


# huggingface/transformers#43760, huggingface/peft#3646
@pytest.mark.parametrize("revision", ["first", "1" * 40])
def test_the_revision_of_the_base_is_the_one_that_is_used(hub: Path, tmp_path: Path, revision: str) -> None:
    first = hub / ("1" * 40)
    adapter = adapter_of(first, tmp_path / "adapter", lora())
    wanted = logits(of_peft(first, adapter))
    assert not torch.allclose(wanted, logits(of_peft(hub / ("2" * 40), adapter)), atol=1e-3)
    saying(adapter, base_model_name_or_path="org/tiny", revision=revision)
    assert Path(resolve(str(adapter)).base) == first
    assert Path(resolve(str(adapter)).without_adapter().base) == first
    code, said = command("export", adapter, "--merge", tmp_path / "merged")
    assert code == 0, said
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), wanted)
    assert "base_model: org/tiny\n" in (tmp_path / "merged/README.md").read_text()


@pytest.mark.parametrize("revision", [None, "main"])
def test_without_a_revision_it_is_the_hub_s_main_one(hub: Path, tmp_path: Path, revision: str | None) -> None:
    adapter = adapter_of(hub / ("1" * 40), tmp_path / "adapter", lora())
    assert resolve(str(saying(adapter, base_model_name_or_path="org/tiny", revision=revision))).base == "org/tiny"


def test_a_revision_that_cannot_be_had_is_named(hub: Path, tmp_path: Path) -> None:
    adapter = adapter_of(hub / ("1" * 40), tmp_path / "adapter", lora())
    saying(adapter, base_model_name_or_path="org/tiny", revision="abc123")
    with pytest.raises(ModelError, match=r"revision 'abc123' of 'org/tiny' cannot be had: .* --base"):
        evaluated(adapter)


def test_an_adapter_names_a_base_in_a_directory_so_that_it_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_qwen2(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    policy = load("./tiny")
    policy.save_adapter(Path("adapter"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resolve("../adapter").base == str(tmp_path / "tiny")


def test_an_evaluation_begun_before_there_was_a_base_to_give_goes_on(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="an engine was started"):
        evaluated(adapter, output=tmp_path / "scores")
    assert "base" not in json.loads((tmp_path / "scores/evaluation.json").read_text())


def test_a_run_whose_student_moved_is_found_by_what_its_settings_say(adapter: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    saying(Path(shutil.copytree(adapter, run / "adapter")), base_model_name_or_path="/scratch/gone")
    settings = {"store": "s", "output": "o", "student": str(tmp_path / "base")}
    (run / "config.json").write_text(json.dumps({"config": settings}))
    assert resolve(str(run)).base == str(tmp_path / "base")
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(RunError, match=r"its student .*/base is not there any more; .* --student .* --base"):
        resolve(str(run))
    assert resolve(str(run), str(tmp_path / "moved")).base == str(tmp_path / "moved")
