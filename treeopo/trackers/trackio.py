"""trackio, which keeps runs on this machine or in a Hugging Face Space: https://huggingface.co/docs/trackio."""

from collections.abc import Mapping
from uuid import uuid4

from treeopo.trackers.base import RunInfo, continued, remember

_PROJECT = "treeopo"


class TrackioTracker:
    """`Tracker` of one run in the project `treeopo`, where TRACKIO_DIR or TRACKIO_SPACE_ID says.

    The run's name there ends in a few letters of its own, because trackio knows runs by name. A resumed run is the same
    run there; steps that it takes anew are in it twice.
    """

    def __init__(self, run: RunInfo) -> None:
        import trackio

        known = continued(run, "trackio")
        name = known or f"{run.name}-{uuid4().hex[:6]}"
        self._run = trackio.init(
            _PROJECT,
            name=name,
            config=dict(run.config),
            resume="allow" if known else "never",
            embed=False,
            auto_log_gpu=False,  # the run's own figures alone
            auto_log_cpu=False,
        )
        remember(run, "trackio", name)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()
