"""`--resume` with settings beside it: each is taken, or refused by name. None is passed over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treeopo_storage import StoreError, open_store
from treeopo_storage.places import parse_place
from treeopo_storage.summary import identity

from treeopo.config import changed_config, differences
from treeopo.errors import RunError
from treeopo.methods import find_method
from treeopo.places import Kind, is_gone, kind_of
from treeopo.run.directory import RunDirectory
from treeopo.run.settled import with_absolute_places

HOW_ONLY = frozenset({"checkpoint_every", "checkpoints_kept", "rollouts_kept"})
"""Settings that decide nothing about what is learned: they may be changed."""

SERVERS = frozenset({"engine.urls", "teacher_urls"})
"""May be changed where a run has some: a server has moved."""


def resume_run(
    path: Path, *, file: Path | None, flags: Mapping[str, Any], labels: Mapping[str, str] | None = None
) -> RunDirectory:
    """The run at `path`, under its own settings, with those of a TOML file and flags that may be changed.

    `labels` say how a person calls a setting, where that is not by its name: a flag. What equals the run's is taken,
    and so is a new place of what is not at its old one any more.

    Raises:
        RunError: there is no run, or a setting is another one there. ConfigError: a setting is unknown or impossible.
    """
    run = RunDirectory.open(path)
    before = run.config
    wanted = changed_config(before, file=file, flags=flags)
    asked = differences(before, wanted)
    changes = {name: two for name, two in differences(before, with_absolute_places(wanted)).items() if name in asked}
    for name, (ours, theirs) in changes.items():
        if reason := _refusal(name, ours, theirs):
            raise RunError(f"{path}: {(labels or {}).get(name, name)} {_shown(theirs)}: {reason}")
    taken = {name: theirs for name, (_, theirs) in changes.items() if name != "output"}
    if "steps" in taken and find_method(before.method).teacher_by is not None:
        taken["teacher_steps"] = before.teacher_steps or before.steps
    if taken:
        run.change(changed_config(before, file=None, flags=taken))
    return run


def length_notice(run: RunDirectory) -> str | None:
    """What a larger number of steps does to a run that is about to go on with it; None where it keeps its length."""
    if "steps" not in run.changes:
        return None
    before, now = run.changes["steps"]
    return (
        f"{before} steps become {now}: the learning rate, and what else follows the length of a run, goes on where a "
        f"run of {now} steps stands there; after an end at rate 0 that is a rise"
    )


def _refusal(name: str, ours: Any, asked: Any) -> str | None:
    """Why a setting may not be changed so; None if it may."""
    if name in HOW_ONLY or (name in SERVERS and ours and asked):
        return None
    if name == "steps":
        return None if asked > ours else f"the run is of {ours} steps, which may be raised only"
    whose = f"the run has {_shown(ours)}"
    if name == "output":
        is_here = Path(ours).resolve() == Path(asked).resolve()
        return None if is_here else f"{whose}; a run goes on where it is, leave it out"
    if (kind := kind_of(name)) is not None and ours is not None and asked is not None:
        if is_gone(kind, parse_place(ours) if kind is Kind.PATH else ours) or (name == "store" and _alike(ours, asked)):
            return None
        whose += " and that is there"
    return f"{whose}; leave it out, or start a new run with another --output"


def _alike(one: str, other: str) -> bool:
    """Whether two stores hold the same trees."""
    try:
        return identity(open_store(one)) == identity(open_store(other))
    except StoreError:
        return False


def _shown(value: Any) -> str:
    return "nothing" if value in (None, []) else str(value)
