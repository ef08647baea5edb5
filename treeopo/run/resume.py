"""`--resume` with settings beside it: each is taken, or refused by name. None is passed over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treeopo.config import changed_config, differences
from treeopo.errors import RunError
from treeopo.methods import find_method
from treeopo.run.directory import RunDirectory

HOW_ONLY = frozenset({"checkpoint_every", "checkpoints_kept", "rollouts_kept"})
"""Settings that decide nothing about what is learned: they may be changed."""

SERVERS = frozenset({"engine.urls", "teacher_urls"})
"""May be changed where a run has some: a server has moved."""


def resume_run(
    path: Path, *, file: Path | None, flags: Mapping[str, Any], labels: Mapping[str, str] | None = None
) -> RunDirectory:
    """The run at `path`, under its own settings, with those of a TOML file and flags that may be changed.

    `labels` say how a person calls a setting, where that is not by its name: a flag. What equals the run's is taken.

    Raises:
        RunError: there is no run, or a setting is another one there. ConfigError: a setting is unknown or impossible.
    """
    run = RunDirectory.open(path)
    before = run.config
    wanted = changed_config(before, file=file, flags=flags)
    if wanted.output.resolve() == before.output.resolve():
        wanted = wanted.model_copy(update={"output": before.output})
    for name, (ours, asked) in differences(before, wanted).items():
        if reason := _refusal(name, ours, asked):
            raise RunError(f"{path}: {(labels or {}).get(name, name)} {_shown(asked)}: {reason}")
    if wanted.steps != before.steps and find_method(before.method).teacher_by is not None:
        wanted = wanted.model_copy(update={"teacher_steps": before.teacher_steps or before.steps})
    run.change(wanted)
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
        return f"{whose}; a run goes on where it is, leave it out"
    return f"{whose}; leave it out, or start a new run with another --output"


def _shown(value: Any) -> str:
    return "nothing" if value in (None, []) else str(value)
