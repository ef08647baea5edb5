"""The cache of embedded models: made once, whole or not at all, whoever asks at the same time or was killed before.

The training is replaced by one that writes two files; `tests/integration/test_tiny_models.py` trains.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from treeopo.errors import ConfigError, ModelError
from treeopo.tiny import ensure_tiny
from treeopo.tiny.cache import default_cache_dir

FAKE_TRAINING = """
import os, sys, time, types
from pathlib import Path
cache, behaviour = Path(sys.argv[1]), sys.argv[2]

def make_models(recipe, directory, on_step):
    with (cache / "made").open("a") as log:
        log.write("x")
    (directory / "teacher").mkdir()
    if behaviour == "killed":
        os._exit(9)
    if behaviour == "fails":
        raise KeyboardInterrupt
    time.sleep(0.5)
    on_step("teacher", 1, 0.5)
    (directory / "student").mkdir()

sys.modules["treeopo.tiny.training"] = types.SimpleNamespace(make_models=make_models)
from treeopo.tiny import ensure_tiny
models = ensure_tiny("easy", cache, progress=behaviour == "bar")
assert models.student.is_dir() and models.teacher.is_dir()
heavy = {"torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""


def start(cache: Path, behaviour: str = "works") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FAKE_TRAINING, str(cache), behaviour], stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def times_made(cache: Path) -> int:
    return len((cache / "made").read_text())


def test_processes_that_ask_at_once_make_the_models_once(tmp_path: Path) -> None:
    assert [finish(process) for process in [start(tmp_path) for _ in range(3)]] == [(0, "")] * 3
    assert times_made(tmp_path) == 1


def test_a_process_that_waits_for_another_says_so(tmp_path: Path) -> None:
    said = "".join(finish(process)[1] for process in [start(tmp_path, "bar"), start(tmp_path, "bar")])
    assert "another process is making easy-" in said
    assert times_made(tmp_path) == 1


def test_without_torch_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "treeopo.tiny.training", None)
    with pytest.raises(ModelError, match=r"not installed; pip install 'treeopo\[train\]'"):
        ensure_tiny("easy", tmp_path)


def test_what_is_cached_is_not_made_again(tmp_path: Path) -> None:
    assert [finish(start(tmp_path))[0] for _ in range(2)] == [0, 0]
    assert times_made(tmp_path) == 1


def test_what_a_killed_process_left_is_thrown_away(tmp_path: Path) -> None:
    assert finish(start(tmp_path, "killed"))[0] == 9
    assert list((tmp_path / "tiny").glob(".easy-*"))
    assert finish(start(tmp_path)) == (0, "")
    assert times_made(tmp_path) == 2
    assert not list((tmp_path / "tiny").glob(".easy-*"))


def test_an_interrupted_training_leaves_nothing(tmp_path: Path) -> None:
    assert finish(start(tmp_path, "fails"))[0] != 0
    assert [path.suffix for path in (tmp_path / "tiny").iterdir()] == [".lock"]


def test_the_bar_names_the_models(tmp_path: Path) -> None:
    code, shown = finish(start(tmp_path, "bar"))
    assert code == 0
    assert "embedded easy teacher" in shown


def test_an_unknown_difficulty_is_refused() -> None:
    with pytest.raises(ConfigError, match="'hard': there is easy and sparse"):
        ensure_tiny("hard")


def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written.*TREEOPO_CACHE"):
        ensure_tiny("easy", tmp_path / "file")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TREEOPO_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("TREEOPO_CACHE")
    assert default_cache_dir() == tmp_path / "xdg" / "treeopo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "treeopo"
