"""Where a run's store, models and files are, whatever directory it is gone on with in, and wherever it was moved."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from treeopo.config import TrainConfig
from treeopo.errors import RunError
from treeopo.places import Kind, absolute, is_gone, kind_of, mapped

PLACES = frozenset(
    {
        *("store", "student", "teacher", "evaluation.problems"),
        *("solutions.problems", "solutions.prompt.examples", "solutions.prompt.template"),
    }
)
"""What a run reads when it goes on."""

_FLAGS = {
    "store": "treeopo train STORE --resume {run}",
    "student": "treeopo train --student DIRECTORY --resume {run}, or to eval and export by --base DIRECTORY",
}


def with_absolute_places(config: TrainConfig) -> TrainConfig:
    """The settings of a new run as `config.json` keeps them; `output` stays as a person typed it."""
    values = mapped(config.model_dump(), absolute) | {"output": config.output}
    return TrainConfig.model_validate(values)


def as_recorded(config: TrainConfig, record: Mapping[str, Any], path: Path) -> TrainConfig:
    """The settings of the run at `path`, read from its `record`.

    Earlier versions kept places as they were typed. Where the run still lies under the name it was given, that says in
    which directory, and what is found there is taken; a name that stays relative is refused where it is needed.
    """
    origin = None if "directory" in record else _origin(config.output, path.absolute())
    config = config.model_copy(update={"output": path})
    if origin is None:
        return config

    def place(kind: Kind, place: Path | str, directory: Path) -> Path | str:
        found = absolute(kind, place, directory)
        return place if is_gone(kind, found) else found

    values = mapped(config.model_dump(), partial(place, directory=origin)) | {"output": path}
    return TrainConfig.model_validate(values)


def check_places(config: TrainConfig, run: Path, names: frozenset[str]) -> None:
    """Find out whether a run that goes on still has the places that the settings of these names give.

    Raises:
        RunError: one is not there, or relative to a directory that is not known; how a new one is given.
    """
    for name in sorted(names):
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        kind = kind_of(name)
        if kind is None or not isinstance(value, str | Path) or not is_gone(kind, value):
            continue
        flag = _FLAGS.get(name, f"--set {name}=PLACE beside --resume").format(run=run)
        if Path(value).is_absolute():
            raise RunError(f"{run}: its {name} {value} is not there any more; give its new place by {flag}")
        raise RunError(
            f"{run}: its {name} {str(value)!r} is relative to a directory that is not known, and is not looked for in "
            f"this one; give its place by {flag}"
        )


def _origin(output: Path, path: Path) -> Path | None:
    """The directory in which a run at `path` was called `output`; None if it was moved, or that does not tell."""
    names = output.parts
    if output.is_absolute() or ".." in names or not names or path.parts[-len(names) :] != names:
        return None
    return Path(*path.parts[: -len(names)])
