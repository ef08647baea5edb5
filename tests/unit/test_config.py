"""Settings are validated before anything starts: flags win over files, files over defaults, and nothing is ignored."""

from pathlib import Path

import pytest

from treeopo.config import BuildConfig, EvalConfig, TrainConfig, load_config
from treeopo.errors import ConfigError

TRAIN = {"store": "trees.zarr", "output": "run"}


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def test_defaults_are_the_paper_s() -> None:
    config = load_config(TrainConfig, file=None, flags={**TRAIN, "student": "Qwen/Qwen2.5-1.5B"})
    assert (config.learner.lora.rank, config.learner.lora.alpha, config.learner.lora.dropout) == (16, 64, 0.1)
    assert config.learner.optimizer.learning_rate == 3e-5
    assert (config.rollout.group_size, config.rollout.batch_size) == (8, 32)
    assert (config.rollout.max_prompt_tokens, config.rollout.max_sequence_tokens) == (512, 768)
    assert (config.advantage.method, config.advantage.alpha) == ("expectation", 0.5)
    search = load_config(BuildConfig, file=None, flags={"output": "s", "teacher": "Qwen/Qwen2.5-7B"}).search
    assert (search.rollouts, search.depth, search.branching) == (16, 5, 5)


def test_the_embedded_default_has_its_own_rate_unless_one_is_given() -> None:
    assert load_config(TrainConfig, file=None, flags=TRAIN).learner.optimizer.learning_rate == 3e-4
    flags = {**TRAIN, "learner.optimizer.learning_rate": 5e-5}
    assert load_config(TrainConfig, file=None, flags=flags).learner.optimizer.learning_rate == 5e-5


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = toml(tmp_path, "steps = 7\nseed = 3\n[rollout]\nmax_staleness = 4\n")
    config = load_config(TrainConfig, file=file, flags={**TRAIN, "seed": 9, "steps": None})
    assert (config.steps, config.seed, config.rollout.max_staleness) == (7, 9, 4)
    assert config.rollout.batch_size == 128  # the embedded default's, untouched by the file's section


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"stepz": 3}, "unknown setting stepz"),
        ({"rollout.grup_size": 3}, "unknown setting rollout.grup_size"),
        ({"learner.lora.rnk": 3}, "unknown setting learner.lora.rnk"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
        ({"method": "dpo"}, "no method 'dpo'; choose one of tree-opo, grpo"),
        ({"rollout.batch_size": 30}, "batch_size 30 is not a multiple of group_size 8"),
        ({"rollout.max_prompt_tokens": 900}, "must leave room in max_sequence_tokens"),
        ({"rollout.max_staleness": -1}, "max_staleness is -1"),
        ({"rollout.temperature": 0.0}, "temperature is 0.0"),
        ({"advantage.method": "expectatoin"}, "expectatoin"),
        ({"advantage.alpha": 1.5}, "alpha = 1.5"),
        ({"learner.optimizer.learning_rate": -1e-5}, "learning_rate"),
        ({"learner.lora.dropout": 1.0}, "dropout is 1.0"),
        ({"learner.aggregation": "mean"}, "aggregation"),
        ({"engine.dtype": "int8"}, "dtype"),
    ],
)
def test_an_impossible_setting_is_named_in_one_line(flags: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(TrainConfig, file=None, flags={**TRAIN, **flags})
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_every_wrong_setting_is_named_not_only_the_first() -> None:
    with pytest.raises(ConfigError, match=r"samples.*max_new_tokens|max_new_tokens.*samples"):
        load_config(EvalConfig, file=None, flags={"samples": -1, "max_new_tokens": 0})


@pytest.mark.parametrize(("text", "complaint"), [("steps = ", "not valid TOML"), ("[steps", "not valid TOML")])
def test_a_broken_file_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(ConfigError, match=complaint) as error:
        load_config(TrainConfig, file=file, flags=TRAIN)
    assert str(file) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        load_config(TrainConfig, file=tmp_path / "absent.toml", flags=TRAIN)
