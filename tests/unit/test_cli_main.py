"""Whatever goes wrong on purpose, or with the disk, is one line and a non-zero exit."""

import errno
from collections.abc import Callable
from typing import get_type_hints

import pytest
import typer
from treeopo_cli import evaluate, mcts, train
from treeopo_cli import main as cli
from treeopo_cli.options import Set, Sets, given_settings
from typer.testing import CliRunner

from treeopo.errors import ConfigError, DivergedError, EngineDeadError, OutOfMemoryError
from treeopo.settings_reference import command_settings


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("steps is 0;\nuse 1"), 2, "treeopo: steps is 0; use 1"),
        (EngineDeadError("the engine died"), 1, "treeopo: the engine died"),
        (DivergedError("step 3: loss nan"), 1, "treeopo: step 3: loss nan"),
        (OutOfMemoryError("out of memory: a sequence"), 1, "treeopo: out of memory: a sequence"),
        (
            OSError(errno.ENOSPC, "No space left on device", "run/x"),
            1,
            "treeopo: [Errno 28] No space left on device: 'run/x'",
        ),
        (ModuleNotFoundError("No module", name="torch"), 2, "treeopo: this command needs torch; install treeopo[cpu]"),
    ],
)
def test_an_error_is_one_line(
    error: Exception, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == status
    printed = capsys.readouterr().err
    assert printed.startswith(line)
    assert printed.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(AssertionError, match="a bug"):
        cli.main()


@pytest.mark.parametrize("command", [["train"], ["mcts", "build"], ["eval"]])
def test_help_shows_what_holds_where_an_option_is_not_given(command: list[str]) -> None:
    shown = CliRunner().invoke(cli.app, [*command, "--help"]).output
    assert shown.count("[default:") >= 4
    assert "the embedded" in shown


COMMANDS = [(train.train, "train"), (mcts.build, "build"), (evaluate.evaluate, "eval")]
NO_SETTINGS = {"context", "config", "set_", "resume", "return"}


@pytest.mark.parametrize(("command", "config"), COMMANDS)
def test_every_option_gives_a_setting_that_exists(command: Callable[..., None], config: str) -> None:
    known = {setting.name for setting in command_settings(config)}
    hints = get_type_hints(command, include_extras=True)
    for option in hints.keys() - NO_SETTINGS:
        (sets,) = [extra for extra in hints[option].__metadata__ if isinstance(extra, Sets)]
        assert sets.name in known, option


def test_what_is_typed_becomes_the_settings_of_those_names_and_nothing_else() -> None:
    given: dict[str, object] = {}
    app = typer.Typer()

    @app.command()
    def command(
        context: typer.Context, steps: train.Steps = None, asynchronous: train.Asynchronous = None, set_: Set = None
    ) -> None:
        given.update(given_settings(command, context))

    assert CliRunner().invoke(app, ["--sync", "--set", "kl.beta=0.5", "--set", "student=me"]).exit_code == 0
    assert given == {"rollout.max_staleness": 0, "kl.beta": 0.5, "student": "me"}
