"""Whatever goes wrong on purpose, or with the disk, is one line and a non-zero exit."""

import errno

import pytest
from treeopo_cli import main as cli
from typer.testing import CliRunner

from treeopo.errors import ConfigError, DivergedError, EngineDeadError


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("steps is 0;\nuse 1"), 2, "treeopo: steps is 0; use 1"),
        (EngineDeadError("the engine died"), 1, "treeopo: the engine died"),
        (DivergedError("step 3: loss nan"), 1, "treeopo: step 3: loss nan"),
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
