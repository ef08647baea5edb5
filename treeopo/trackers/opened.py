"""The trackers of one run by name: checked before anything starts, opened together, closed once each."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from treeopo.errors import ConfigError, InputError, described
from treeopo.plugins import find
from treeopo.ports import Tracker
from treeopo.trackers.base import FanOut, Guarded, InThread, RunInfo
from treeopo.trackers.jsonl import JsonLines
from treeopo.trackers.tensorboard import TensorBoard

TRACKERS = {
    "wandb": "treeopo.trackers.wandb:WandbTracker",
    "trackio": "treeopo.trackers.trackio:TrackioTracker",
    "mlflow": "treeopo.trackers.mlflow:MlflowTracker",
}
"""What `--track` knows by name; each needs the package of that name, which the extra of that name installs."""


@dataclass(frozen=True, slots=True)
class RunTrackers:
    """Where the figures of a run's steps go, and those of its evaluations. The chosen trackers get both."""

    steps: Tracker
    evaluations: Tracker
    _opened: ExitStack

    def close(self) -> None:
        """Close every tracker, each once."""
        self._opened.close()


def check_trackers(names: Sequence[str]) -> None:
    """Whether these trackers can be opened, as far as that can be told without importing their packages.

    Raises:
        ConfigError: a name is unknown or given twice, its package is missing, or a user's own cannot be loaded.
    """
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--track {name} is given twice; once is enough")
        if name in TRACKERS and not _is_installed(name):
            raise ConfigError(f"--track {name} needs the package {name}; pip install 'treeopo[{name}]'")
        if name not in TRACKERS and not callable(find(name, TRACKERS, "tracker")):
            raise ConfigError(f"tracker {name}: makes no tracker; name a class that is called with a run")


def open_trackers(
    names: Sequence[str], info: RunInfo, metrics: Path, evaluations: Path, tensorboard: Path
) -> RunTrackers:
    """JSON Lines at `metrics` and `evaluations`, TensorBoard in the directory `tensorboard`, and those of `names`.

    Raises:
        ConfigError: one of `names` is unknown, or cannot start.
    """
    with ExitStack() as opened:
        step_lines, evaluation_lines = JsonLines(metrics, info.resume_at), JsonLines(evaluations, info.resume_at)
        others: list[Tracker] = [Guarded("tensorboard", TensorBoard(tensorboard, info.resume_at))]
        for tracker in (step_lines, evaluation_lines, *others):
            opened.callback(tracker.close)
        for name in names:
            others.append(Guarded(name, InThread(_made(name, info))))
            opened.callback(others[-1].close)
        return RunTrackers(FanOut([step_lines, *others]), FanOut([evaluation_lines, *others]), opened.pop_all())


def _made(name: str, info: RunInfo) -> Tracker:
    make = find(name, TRACKERS, "tracker")
    try:
        tracker: Tracker = make(info)
    except InputError:
        raise
    except Exception as error:
        raise ConfigError(
            f"tracker {name}: cannot start ({described(error)}); mend that, or leave --track {name} out"
        ) from error
    lacking = [method for method in ("write", "close") if not callable(getattr(tracker, method, None))]
    if lacking:
        raise ConfigError(f"tracker {name} lacks {' and '.join(lacking)}; docs/metrics.md shows a tracker")
    return tracker


def _is_installed(package: str) -> bool:
    """A folder of that name in the working directory, as wandb leaves one, is no package."""
    found = find_spec(package)
    return found is not None and found.origin is not None
