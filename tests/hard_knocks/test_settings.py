"""Settings under names that they do not have: refused with those that were meant, whose words they may be."""

from pathlib import Path
from typing import Any

import pytest

from treeopo.config import BuildConfig, EvalConfig, Section, TrainConfig, load_config
from treeopo.errors import ConfigError
from treeopo.setting_names import SYNONYMS
from treeopo.settings_reference import CONFIGS, command_settings

TRAIN = {"store": "t.zarr", "output": "run"}
EVAL = {"model": "m", "problems": ["p.jsonl"]}
BUILD = {"output": "t.zarr", "problems": "p.jsonl"}


# huggingface/open-r1#333, om-ai-lab/VLM-R1#73: the words of other trainers
@pytest.mark.parametrize(
    ("kind", "given", "name", "meant"),
    [
        (TrainConfig, TRAIN, "report_to", "trackers"),
        (TrainConfig, TRAIN, "num_generations", "rollout.group_size"),
        (TrainConfig, TRAIN, "learner.lr", "learner.optimizer.learning_rate"),
        (TrainConfig, TRAIN, "learner.optimizer.lr", "learner.optimizer.learning_rate"),
        (TrainConfig, TRAIN, "temperature", "rollout.temperature"),
        (TrainConfig, TRAIN, "learner.lora.rnk", "learner.lora.rank"),
        (TrainConfig, TRAIN, "rollout.max_stale", "rollout.max_staleness"),
        (TrainConfig, TRAIN, "rollout.behaviour.min_mas", "rollout.behaviour.min_mass"),
        (TrainConfig, TRAIN, "stepz", "steps"),
        (BuildConfig, BUILD, "temperature", "search.temperature"),
        (EvalConfig, EVAL, "limitt", "limit"),
        (EvalConfig, EVAL, "chat_template_kwargs", "prompt.chat_arguments"),
        (EvalConfig, EVAL, "engine.server.request_per_second", "engine.server.requests_per_second"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_one_that_was_meant(
    kind: type[Section], given: dict[str, Any], name: str, meant: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(kind, file=None, flags={**given, name: 1})
    assert str(error.value) == f"settings: unknown setting {name}; did you mean {meant}?"


def test_a_name_that_is_like_none_is_refused_with_those_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('store = "t.zarr"\noutput = "run"\n[learner.optimizer]\nxyzzy = 3\n')
    with pytest.raises(
        ConfigError, match=r"unknown setting learner\.optimizer\.xyzzy; known in learner\.optimizer are "
    ) as error:
        load_config(TrainConfig, file=file, flags={})
    assert str(error.value).startswith(f"{file}: ")
    assert "learner.optimizer.warmup_steps" in str(error.value)


def test_every_synonym_leads_to_a_setting_that_there_is() -> None:
    assert set(SYNONYMS.values()) <= {setting.name for command in CONFIGS for setting in command_settings(command)}
