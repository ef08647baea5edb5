"""`treeopo demo`: the main job on the embedded default, from nothing to a comparison.

What an earlier call finished is used again, and what it left half done is continued.
"""

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from treeopo.config import BuildConfig, EvalConfig, TrainConfig, load_config
from treeopo.evaluation.answers import read_evaluations
from treeopo.evaluation.comparison import Evaluation, ModelScore
from treeopo.evaluation.intervals import Interval
from treeopo.jobs.build import build_store
from treeopo.jobs.evaluate import evaluate
from treeopo.jobs.train import TrainSummary, train
from treeopo.run.directory import RunDirectory
from treeopo.run.models import embedded
from treeopo.search.report import TreeReport

TRAINING_PROBLEMS = 200
HELD_OUT_PROBLEMS = 300
SAMPLES = 4


class Bars(Protocol):
    """Progress bars of the stages, as context managers with `notify` and `advance`."""

    def build(self) -> AbstractContextManager[Any]: ...

    def train(self, steps: int) -> AbstractContextManager[Any]: ...

    def evaluate(self) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True, slots=True)
class Demo:
    """What came out, and the seconds each stage took when it was run."""

    directory: Path
    report: TreeReport
    training: TrainSummary
    evaluation: Evaluation
    seconds: dict[str, float]

    @property
    def store(self) -> Path:
        return self.directory / "trees.zarr"

    @property
    def run(self) -> Path:
        return self.directory / "run"


def demo(directory: Path, bars: Bars) -> Demo:
    """Run every stage that is not done and write `directory`/summary.json.

    Raises:
        InputError: the directory holds something else, or cannot be written.
        EngineError: an engine failed; calling again continues.
    """
    store, run_path, scores = directory / "trees.zarr", directory / "run", directory / "evaluation"
    seconds = _Seconds(directory / "seconds.json")
    with seconds.of("models"):
        embedded("")
    build = load_config(BuildConfig, file=None, flags={"output": store, "limit": TRAINING_PROBLEMS})
    with seconds.of("trees"), bars.build() as bar:
        report = build_store(build, bar.notify, bar.advance)
    if (run_path / "config.json").exists():
        run = RunDirectory.open(run_path)
    else:
        run = RunDirectory.create(load_config(TrainConfig, file=None, flags={"store": store, "output": run_path}))
    with seconds.of("training"), bars.train(run.config.steps) as bar:
        training = train(run, bar.notify, bar.advance)
    evaluations = read_evaluations(scores)
    if evaluations is None:
        flags = {"model": str(run_path), "against": "base", "limit": HELD_OUT_PROBLEMS, "samples": SAMPLES}
        config = load_config(EvalConfig, file=None, flags={**flags, "output": scores})
        with seconds.of("evaluation"), bars.evaluate() as bar:
            evaluations = evaluate(config, bar.notify, bar.advance)
    result = Demo(directory, report, training, evaluations[0], seconds.taken)
    (directory / "summary.json").write_text(json.dumps(summary(result), indent=2) + "\n", encoding="utf-8")
    return result


def summary(demo: Demo) -> dict[str, Any]:
    """The figures of a demo as plain data; `before` and `after` are greedy pass@1 on held-out problems."""
    after, before = demo.evaluation.scores

    return {
        "before": _score(before),
        "after": _score(after),
        "difference": _plain(demo.evaluation.difference.greedy if demo.evaluation.difference else None),
        "sampled": {"before": _plain(before.sampled), "after": _plain(after.sampled)},
        "problems": demo.report.problems,
        "held_out_problems": demo.evaluation.count,
        "steps": demo.training.steps,
        "prefixes": demo.report.prefixes,
        "max_staleness_seen": demo.training.max_staleness,
        "seconds": sum(demo.seconds.values()),
        "seconds_by_stage": demo.seconds,
    }


def _score(row: ModelScore) -> dict[str, float]:
    return {"pass_at_1": row.greedy.estimate, "low": row.greedy.low, "high": row.greedy.high}


def _plain(interval: Interval | None) -> dict[str, float] | None:
    return asdict(interval) if interval else None


class _Seconds:
    """Seconds a stage took, kept on disk: a stage that only finds its work done keeps its first figure."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.taken: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.taken[stage] = max(self.taken.get(stage, 0.0), time.monotonic() - began)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.taken))
