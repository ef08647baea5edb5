"""Settings that name a place: a file, a directory, a model on disk, a tree store, a problem set in a file.

`~` is expanded in all of them. A run, a store and an evaluation keep theirs absolute, so that the same words, typed or
read in another directory, never mean another model or store.
"""

import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, assert_never

from treeopo.errors import ConfigError
from treeopo.problems.spec import absolute_spec, is_of_file, is_there


class Kind(StrEnum):
    """What a place is; that says when a name is one."""

    PATH = "path"
    """Always a local path; or, of a store, the URL of a place that is not."""

    MODEL = "model"
    """A directory if there is one of this name, or else a name on the hub."""

    PROBLEMS = "problems"
    """A file in the grammar of problem sets, or a set of another kind."""


KINDS: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(("store", "output", "template", "templates"), Kind.PATH),
    **dict.fromkeys(("student", "teacher", "model", "against", "base"), Kind.MODEL),
    **dict.fromkeys(("problems", "examples"), Kind.PROBLEMS),
}
"""By the last part of a setting's dotted name, in every command."""


def kind_of(setting: str) -> Kind | None:
    """What place a setting names; None: none."""
    return KINDS.get(setting.rpartition(".")[2])


def mapped(settings: Mapping[str, Any], change: Callable[[Kind, Path | str], Path | str]) -> dict[str, Any]:
    """Nested settings with `change` applied to every place in them, also where there are several of a name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        kind = KINDS.get(name)
        if isinstance(value, Mapping):
            found[name] = mapped(value, change)
        elif kind is None:
            found[name] = value
        elif isinstance(value, list | tuple):
            found[name] = type(value)(change(kind, each) if isinstance(each, str | Path) else each for each in value)
        else:
            found[name] = change(kind, value) if isinstance(value, str | Path) else value
    return found


def at_home(kind: Kind, place: Path | str) -> Path | str:
    """`place` with a `~` at its beginning expanded.

    Raises:
        ConfigError: nobody's home is called so.
    """
    text = str(place)
    if not text.startswith("~"):
        return place
    if (expanded := os.path.expanduser(text)).startswith("~"):
        raise ConfigError(f"{text}: there is no such home directory; give an absolute path")
    return Path(expanded) if isinstance(place, Path) else expanded


def absolute(kind: Kind, place: Path | str, directory: Path | None = None) -> Path | str:
    """`place` as it is seen from anywhere: a relative one is in `directory`, or in the working directory."""
    directory = directory or Path.cwd()
    match kind:
        case Kind.PATH:
            if isinstance(place, Path):
                return directory / place
            return place if "://" in place else str(directory / place)
        case Kind.MODEL:
            return str(directory / place) if (directory / place).is_dir() else place
        case Kind.PROBLEMS:
            return absolute_spec(str(place), directory)
        case _:
            assert_never(kind)


def is_gone(kind: Kind, place: Path | str) -> bool:
    """Whether nothing is at an absolute local place, or a relative one is not known to mean anything here."""
    match kind:
        case Kind.PATH:
            return isinstance(place, Path) and not (place.is_absolute() and place.exists())
        case Kind.MODEL:
            # A name on the hub is not gone, but where a directory is called so, that would be taken for it.
            path = Path(place)
            return not path.is_dir() if path.is_absolute() else path.is_dir() or str(place).startswith((".", "~"))
        case Kind.PROBLEMS:
            return is_of_file(str(place)) and not (Path(place).is_absolute() and is_there(str(place)))
        case _:
            assert_never(kind)
