"""The embedded models in the user's cache: made once per recipe, whole or not at all, by one process at a time."""

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from treeopo.errors import ConfigError, ModelError
from treeopo.problems.staged_arithmetic import Difficulty
from treeopo.tiny.recipe import RECIPES, ModelRecipe


@dataclass(frozen=True, slots=True)
class TinyModels:
    """Two directories that transformers, peft and vLLM load; they share one tokenizer."""

    student: Path
    teacher: Path


def ensure_tiny(
    difficulty: Difficulty | str = Difficulty.EASY, cache_dir: Path | None = None, progress: bool = True
) -> TinyModels:
    """The embedded models of a difficulty, made now (minutes on two cores) unless this cache has them.

    cache_dir: default $TREEOPO_CACHE, else $XDG_CACHE_HOME/treeopo, else ~/.cache/treeopo.
    progress: show a bar on the terminal's error stream while training.

    Safe to call from several processes at once: one makes the models, the others wait for them. Whatever a killed
    process left behind is never taken for a model.

    Raises:
        ConfigError: there is no such difficulty, or the cache directory cannot be written.
        ModelError: torch or transformers is not installed.
    """
    if difficulty not in list(Difficulty):
        raise ConfigError(f"embedded model {difficulty!r}: there is {' and '.join(Difficulty)}")
    recipe = RECIPES[Difficulty(difficulty)]
    home = cache_dir or default_cache_dir()
    directory = home / "tiny" / f"{difficulty}-{recipe.key()}"
    models = TinyModels(directory / "student", directory / "teacher")
    if not directory.is_dir():
        try:
            with _lock(directory, progress):
                if not directory.is_dir():
                    _make(recipe, directory, progress)
        except OSError as error:
            raise ConfigError(
                f"cache {home}: cannot be written ({error.strerror or error}); set TREEOPO_CACHE to another directory"
            ) from error
    return models


def default_cache_dir() -> Path:
    """$TREEOPO_CACHE, else the XDG cache directory's `treeopo`."""
    chosen = os.environ.get("TREEOPO_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "treeopo"


@contextmanager
def _lock(directory: Path, progress: bool) -> Iterator[None]:
    """Held while making `directory`; the system lets go of it when its process ends, however it ends."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                print(f"another process is making {directory.name}; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(recipe: ModelRecipe, directory: Path, progress: bool) -> None:
    """Build beside `directory`, then rename: whoever sees it sees all of it."""
    try:
        from treeopo.tiny.training import make_models
    except ImportError as error:
        raise ModelError(
            f"the embedded models cannot be made: {error.name} is not installed; pip install 'treeopo[train]'"
        ) from error
    for abandoned in directory.parent.glob(f".{directory.name}-*"):
        shutil.rmtree(abandoned)
    building = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        with _bar(recipe, progress) as on_step:
            make_models(recipe, building, on_step)
        building.rename(directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def _bar(recipe: ModelRecipe, shown: bool) -> Iterator[Callable[[str, int, float], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps  loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        tasks = {
            name: bar.add_task(f"embedded {recipe.difficulty} {name}", total=phase.steps, loss=float("nan"))
            for name, phase in (("teacher", recipe.teacher), ("student", recipe.student))
        }
        yield lambda name, step, loss: bar.update(tasks[name], completed=step, loss=loss)
