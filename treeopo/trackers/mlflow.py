"""MLflow: https://mlflow.org. Its own variables choose where to (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME)."""

import os
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from treeopo.errors import ConfigError
from treeopo.trackers.base import RunInfo, continued, remember

_PARAMETERS_AT_ONCE = 100  # MLflow's limits, which are of its REST interface
_LONGEST_PARAMETER = 6000


class MlflowTracker:
    """`Tracker` of one run in the experiment MLFLOW_EXPERIMENT_NAME, or else `treeopo`.

    A resumed run is the same run there, if that is still to be had; steps that it takes anew are in it twice. The
    package may be mlflow-skinny, which talks to servers and keeps no database of its own.

    Raises:
        ConfigError: it is that, and no server is given.
    """

    def __init__(self, run: RunInfo) -> None:
        from mlflow.tracking import MlflowClient, is_tracking_uri_set

        if not is_tracking_uri_set() and find_spec("sqlalchemy") is None:
            raise ConfigError(
                "--track mlflow: mlflow-skinny keeps no database; set MLFLOW_TRACKING_URI to a server, or "
                "pip install mlflow"
            )
        self._client = MlflowClient()
        known = continued(run, "mlflow")
        if known is not None and self._is_there(known):
            self._run_id = known
            self._client.update_run(known, status="RUNNING")
        else:
            self._run_id = self._begin(run)
            remember(run, "mlflow", self._run_id)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._client.log_batch(self._run_id, [Metric(name, value, now, step) for name, value in metrics.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run_id)

    def _is_there(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def _begin(self, run: RunInfo) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "treeopo")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id: str = self._client.create_run(experiment_id, run_name=run.name).info.run_id
        parameters = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in _flat("", run.config)]
        for first in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            self._client.log_batch(run_id, params=parameters[first : first + _PARAMETERS_AT_ONCE])
        return run_id


def _flat(beginning: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Nested settings under dotted names, as `--set` takes them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{beginning}{name}.", value)
        else:
            yield beginning + name, value
