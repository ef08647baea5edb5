"""Where a run's figures go: JSON Lines and TensorBoard always, beside them whatever `--track` names.

base.py                            RunInfo, FanOut, and what keeps a tracker's failure or slowness from the run
opened.py                          a run's trackers by name: checked before it starts, opened, closed
jsonl.py, tensorboard.py           files in the run directory
wandb.py, trackio.py, mlflow.py    services, each an extra of the package
names.py                           the names that metrics had in earlier versions

A tracker is a class (or function) that is called with a `RunInfo` and gives what `treeopo.ports.Tracker` asks for.
"""

from treeopo.trackers.base import FanOut, RunInfo
from treeopo.trackers.jsonl import JsonLines, read_metrics
from treeopo.trackers.opened import TRACKERS, RunTrackers, check_trackers, open_trackers
from treeopo.trackers.tensorboard import TensorBoard

__all__ = [
    "TRACKERS",
    "FanOut",
    "JsonLines",
    "RunInfo",
    "RunTrackers",
    "TensorBoard",
    "check_trackers",
    "open_trackers",
    "read_metrics",
]
