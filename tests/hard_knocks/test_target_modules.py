"""`learner.lora.target_modules` as people write it: a list, names with commas, one name, a pattern, all-linear."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from treeopo_cli.options import settings

from tests.adapters import load
from tests.architectures import make_model
from tests.tiny_models import random_qwen2
from treeopo.config import TrainConfig, load_config
from treeopo.errors import ConfigError, ModelError
from treeopo.learner.settings import LoraSettings

ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("base") / "student")


def lora(given: str) -> LoraSettings:
    """As `--set learner.lora.target_modules=GIVEN` makes it."""
    flags = settings([f"learner.lora.target_modules={given}"])
    return load_config(TrainConfig, file=None, flags={"store": "s", "output": "o", **flags}).learner.lora


def adapted(student: Path, given: LoraSettings) -> dict[str, int]:
    """How many layers of each name have an adapter."""
    paths = [
        path for path, module in load(student, lora=given).model.named_modules() if isinstance(module, BaseTunerLayer)
    ]
    names = [path.rpartition(".")[2] for path in paths]
    return {name: names.count(name) for name in names}


# shibing624/MedicalGPT#391, huggingface/peft#1206
@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("q_proj", {"q_proj"}),
        ("q_proj,v_proj", {"q_proj", "v_proj"}),
        ("q_proj, v_proj", {"q_proj", "v_proj"}),
        ("q_proj v_proj", {"q_proj", "v_proj"}),
        ('["q_proj","v_proj"]', {"q_proj", "v_proj"}),
        ('"q_proj,v_proj"', {"q_proj", "v_proj"}),
        ("self_attn.q_proj", {"q_proj"}),
        (".*(q|v)_proj", {"q_proj", "v_proj"}),
        (r".*\.self_attn\.[qk]_proj", {"q_proj", "k_proj"}),
        ("all-linear", ALL),
        ('["all-linear"]', ALL),
    ],
)
def test_every_way_of_naming_layers_finds_them_in_both_layers(student: Path, given: str, names: set[str]) -> None:
    assert adapted(student, lora(given)) == dict.fromkeys(names, 2)


def test_one_layer_alone_can_be_named(student: Path) -> None:
    assert adapted(student, lora("model.layers.1.mlp.up_proj")) == {"up_proj": 1}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("Wqkv", r"has no layer 'Wqkv'; it has .*q_proj"),
        ("q_proj,Wqkv", r"has no layer 'Wqkv'; it has .*q_proj"),  # of which PEFT adapts the one in silence
        ("qproj", r"has no layer 'qproj'; it has q_proj, "),
        ("all_linear", r"has no layer 'all_linear'; it has all-linear, "),
        ("proj", r"has no layer 'proj'; it has \S+_proj, "),
        (
            "(q|v)_proj",
            r"no layer of .* matches '\(q\|v\)_proj'.* whole names, such as model.layers.0.self_attn.q",
        ),
        ("q_proj|v_proj", r"no layer of .* matches"),
    ],
)
def test_a_layer_that_is_not_there_is_named_with_those_that_are(student: Path, given: str, complaint: str) -> None:
    with pytest.raises(ModelError, match=f"learner.lora.target_modules: .*{complaint}") as error:
        load(student, lora=lora(given))
    assert "\n" not in str(error.value)
    assert "lm_head" not in str(error.value)


@pytest.mark.parametrize("given", ["*_proj", "q_proj(", "[", '""', "[]", '[""]', '" , "'])
def test_what_is_neither_a_name_nor_a_pattern_is_refused_with_the_settings(given: str) -> None:
    with pytest.raises(ConfigError, match=r"lora\.target_modules"):
        lora(given)


@pytest.mark.parametrize("given", ["3", "true", '[["q_proj"]]', "{a = 1}"])
def test_a_value_of_another_kind_is_refused_with_the_settings(given: str) -> None:
    with pytest.raises(ConfigError, match="target_modules"):
        lora(given)


def test_the_same_layers_start_from_the_same_weights_however_they_are_named(student: Path) -> None:
    weights = []
    for given in ("q_proj,v_proj", '["v_proj","q_proj"]', ".*(q|v)_proj"):
        torch.manual_seed(0)
        weights.append([x.clone() for x in load(student, lora=lora(given)).trainable])
    for other in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], other, strict=True))


def settings_of_an_earlier_run() -> dict[str, Any]:
    return load_config(TrainConfig, file=None, flags={"store": "s", "output": "o"}).model_dump(mode="json")


@pytest.mark.parametrize("stored", ["all-linear", ".*(q|v)_proj", ["q_proj", "v_proj"]])
def test_settings_that_were_written_are_read_again(stored: Any) -> None:
    kept = settings_of_an_earlier_run()
    kept["learner"]["lora"]["target_modules"] = stored
    again = TrainConfig.model_validate(kept)
    assert again.model_dump(mode="json") == kept


@pytest.fixture(scope="module", params=["Mixtral", "Qwen2-MoE", "Qwen3-MoE", "OLMoE"])
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(request.param, tmp_path_factory.mktemp("mixture"), steps=0)


# PEFT takes gate_proj of a shared expert, in a list of names or as a linear layer, for the experts' own
def test_all_linear_is_what_lies_outside_the_experts_of_a_mixture(mixture: Path) -> None:
    assert adapted(mixture, lora("all-linear")) == dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), 2)
    assert adapted(mixture, lora("q_proj,v_proj")) == dict.fromkeys(("q_proj", "v_proj"), 2)


def test_layers_in_a_block_of_experts_are_not_trained(tmp_path: Path) -> None:
    student = make_model("Qwen2-MoE", tmp_path, steps=0)
    for given in ("q_proj,up_proj", "shared_expert.down_proj", ".*shared_expert.*"):
        with pytest.raises(ModelError, match=r"in a block of experts, .* name others \(.*q_proj.*\)") as error:
            load(student, lora=lora(given))
        assert "\n" not in str(error.value)
