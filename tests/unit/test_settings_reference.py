"""The settings reference is made from the code: complete, documented, and the page in docs/ is what it makes."""

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from treeopo_cli.main import app
from typer.testing import CliRunner

from treeopo.config import TrainConfig, load_config
from treeopo.errors import ConfigError
from treeopo.settings_reference import CONFIGS, command_settings, find_settings, markdown

DOCS = Path(__file__).parents[2] / "docs"


def leaves(value: object, prefix: str = "") -> dict[str, object]:
    """Every field of nested dataclasses by its dotted name."""
    if not is_dataclass(value):
        return {prefix.removesuffix("."): value}
    return {
        name: leaf
        for field in fields(value)
        for name, leaf in leaves(getattr(value, field.name), f"{prefix}{field.name}.").items()
    }


@pytest.mark.parametrize("command", CONFIGS)
def test_every_setting_has_a_docstring(command: str) -> None:
    assert [setting.name for setting in command_settings(command) if not setting.text] == []


@pytest.mark.parametrize("command", CONFIGS)
def test_the_reference_holds_every_field_of_every_section(command: str) -> None:
    expected = {
        name
        for field, info in CONFIGS[command].model_fields.items()
        for name in leaves(info.get_default(call_default_factory=True), f"{field}.")
    }
    assert {setting.name for setting in command_settings(command)} == expected


def test_defaults_are_those_that_a_command_starts_with() -> None:
    defaults = {setting.name: setting for setting in command_settings("train")}
    own = load_config(TrainConfig, file=None, flags={"output": "run", "student": "a-model"})
    embedded = load_config(TrainConfig, file=None, flags={"output": "run"})
    assert defaults["steps"].default == str(own.steps)
    assert defaults["steps"].embedded == str(embedded.steps)
    assert float(defaults["learner.optimizer.learning_rate"].default) == own.learner.optimizer.learning_rate
    assert float(defaults["learner.optimizer.learning_rate"].embedded or 0) == embedded.learner.optimizer.learning_rate
    assert defaults["learner.correction_low"].default == "none"
    assert defaults["output"].default == '"runs/latest"'


def test_the_page_is_what_the_code_makes() -> None:
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert page == markdown(), "docs/settings.md is old; run: treeopo settings --markdown > docs/settings.md"


def test_a_name_finds_what_begins_with_it_before_what_holds_it() -> None:
    assert [setting.name for setting in find_settings("kl.beta", ["train"])["train"]] == ["kl.beta"]
    assert [setting.name for setting in find_settings("max_staleness")["train"]] == ["rollout.max_staleness"]
    with pytest.raises(ConfigError, match=r"no setting of eval is called 'max_staleness'"):
        find_settings("max_staleness", ["eval"])


def test_the_command_prints_them() -> None:
    printed = CliRunner().invoke(app, ["settings", "train", "rollout.max_staleness"])
    assert printed.exit_code == 0
    assert "rollout.max_staleness" in printed.output
    assert CliRunner().invoke(app, ["settings", "--markdown"]).output == markdown()
    assert CliRunner().invoke(app, ["settings", "sing", "kl"]).exit_code == 2
