"""Weights & Biases: https://docs.wandb.ai. Its own variables choose where to (WANDB_PROJECT, WANDB_MODE, ...)."""

import os
from collections.abc import Mapping
from uuid import uuid4

from treeopo.trackers.base import RunInfo, continued, remember


class WandbTracker:
    """`Tracker` of one run in the project WANDB_PROJECT, or else `treeopo`; its files are in RUN/wandb.

    The horizontal axis of every chart is the metric `step`, because wandb's own step only grows, and an evaluation ends
    some steps after the policy that it is of. A resumed run is the same run there; steps that it takes anew are in it
    twice.
    """

    def __init__(self, run: RunInfo) -> None:
        import wandb

        run_id = continued(run, "wandb") or uuid4().hex[:8]
        remember(run, "wandb", run_id)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "treeopo"),
            id=run_id,
            name=run.name,
            dir=run.path,
            config=dict(run.config),
            resume="allow",
            allow_val_change=True,  # a run that was moved is resumed with another output
            settings=wandb.Settings(console="off"),  # the terminal belongs to the progress bar
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()
