"""OpenMP threads of engine and learner on the same cores: seconds of an asynchronous step, by threads of each.

    python benchmarks/threads.py STORE [--steps 10]

STORE is a tree store of the embedded default (`make demo` leaves demo/trees.zarr). Every combination trains on the same
groups with a fresh engine; the first two steps of each are left out. Prints the median step and its ratio to 1 + 1.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from treeopo.config import TrainConfig, load_config
from treeopo.jobs.train import train
from treeopo.run.directory import RunDirectory
from treeopo.trackers.jsonl import read_metrics

COMBINATIONS = ((1, 1), (1, 2), (2, 1), (2, 2))
PARTS = ("pipeline/seconds_waiting", "pipeline/seconds_learning", "pipeline/seconds_publishing")


def step_seconds(store: Path, steps: int, engine: int, learner: int) -> float:
    """Median seconds of a step with so many threads of each."""
    with tempfile.TemporaryDirectory() as directory:
        flags = {
            "store": store,
            "output": Path(directory) / "run",
            "steps": steps,
            "engine.threads": engine,
            "learner.threads": learner,
        }
        run = RunDirectory.create(load_config(TrainConfig, file=None, flags=flags))
        train(run, lambda notice: None, lambda step, metrics: None)
        return float(statistics.median(sum(step[part] for part in PARTS) for step in read_metrics(run.metrics)[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    print("engine learner  seconds/step  ratio to 1+1")
    base = None
    for engine, learner in COMBINATIONS:
        seconds = step_seconds(arguments.store, arguments.steps, engine, learner)
        base = base or seconds
        print(f"{engine:6d} {learner:7d}  {seconds:12.2f}  {seconds / base:12.2f}", flush=True)


if __name__ == "__main__":
    main()
