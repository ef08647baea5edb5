"""Where groups start: accuracy from the root against completions, every configuration by several seeds.

    python benchmarks/curriculum.py run DIR [--difficulty sparse] [--split test] [--seeds 0 1 2 3 4] [--steps 80]
                                            [--names grpo uniform ...] [--jobs 1]
    python benchmarks/curriculum.py report DIR

`run` trains the embedded student with `treeopo train`, a process a run, on one tree store of 400 problems that it
builds once, and evaluates it greedily on 200 held-out problems every 20 steps; what is there is gone on with. `report`
prints means over seeds with 95 % t intervals at equal completions (all that the engine was asked for), the differences
to grpo seed by seed, and how many completions each configuration takes to where grpo ends.
"""

import argparse
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from treeopo.evaluation.answers import read_evaluations
from treeopo.trackers import read_metrics

PROBLEMS, HELD_OUT, EVERY = 400, 200, 20
AFTER = "evaluated"
"""In a run that has no engine to be evaluated by on the way: its evaluation at the end."""
COMMON = {
    "learner.lora.dropout": "0",
    "learner.microbatch_tokens": "8192",
    "evaluation.every": str(EVERY),
    "evaluation.limit": str(HELD_OUT),
    "rollouts_kept": "none",
    "learner.optimizer.learning_rate": "1e-3",
}
FLAT: dict[str, str | None] = {"advantage.method": "flat"}
SAMPLERS = ("depth", "mixture", "anneal", "success", "frontier")
CONFIGURATIONS: dict[str, dict[str, str | None]] = {
    "grpo": {"method": "grpo", "learner.optimizer.learning_rate": "3e-4"},
    "grpo, 1e-3": {"method": "grpo"},
    "grpo, redraw": {"method": "grpo", "learner.optimizer.learning_rate": "3e-4", "rollout.no_signal": "redraw"},
    "uniform": FLAT,
    "uniform, 3e-4": {**FLAT, "learner.optimizer.learning_rate": "3e-4"},
    "uniform, 3e-3": {**FLAT, "learner.optimizer.learning_rate": "3e-3"},
    "uniform, expectation": {"advantage.method": "expectation"},
    "uniform, loo": {"advantage.method": "loo"},
    "uniform, posterior of the history": {"advantage.method": "posterior", "advantage.scope": "history"},
    "uniform, mc": {"advantage.method": "mc", "advantage.baseline_rollouts": "2"},
    "uniform, redraw": {**FLAT, "rollout.no_signal": "redraw"},
    "uniform, c = 8": {**FLAT, "rollout.completions_per_prefix": "8"},
    "success, c = 8": {**FLAT, "rollout.completions_per_prefix": "8", "rollout.sampling": "success"},
    "uniform, prefix loss 0.01": {**FLAT, "learner.prefix_loss": "0.01"},
    "uniform, prefix loss 0.3": {**FLAT, "learner.prefix_loss": "0.3"},
    **{name: {**FLAT, "rollout.sampling": name} for name in SAMPLERS},
    **{
        f"{name}, prefix loss 0.1": {**FLAT, "rollout.sampling": name, "learner.prefix_loss": "0.1"}
        for name in ("uniform", *SAMPLERS)
    },
    "sft": {
        "method": "sft",
        **dict.fromkeys(("rollouts_kept", "evaluation.every", "evaluation.limit", "evaluation.problems")),
    },
}
"""By name, what each configuration sets beside COMMON; None takes a setting of it away."""


def train(directory: Path, name: str, seed: int, difficulty: str, split: str, steps: int) -> None:
    """One run to its end, and its evaluation, as far as they are not there."""
    output = directory / f"{difficulty}-{split}-{steps}" / name / str(seed)
    problems = f"staged-arithmetic:{difficulty}:{split}"
    settings = {**COMMON, "evaluation.problems": problems, **CONFIGURATIONS[name]}
    given = [word for setting, value in settings.items() if value for word in ("--set", f"{setting}={value}")]
    new = [store(directory, difficulty), "-o", output, "--steps", steps, "--seed", seed, *given]
    calls = []
    if not (output / "adapter").exists():
        calls.append(["train", *(["--resume", output] if read_metrics(output / "metrics.jsonl") else new)])
    if settings["evaluation.every"] is None and read_evaluations(output / AFTER) is None:
        calls.append(["eval", output, "--problems", problems, "--limit", HELD_OUT, "-o", output / AFTER])
    output.parent.mkdir(parents=True, exist_ok=True)
    for call in calls:
        with output.with_suffix(".log").open("a") as log:
            done = subprocess.run(["treeopo", *map(str, call)], stdout=log, stderr=log, check=False)
        print(f"{name}, seed {seed}: {'done' if done.returncode == 0 else f'failed, see {log.name}'}", flush=True)
        if done.returncode != 0:
            return


def store(directory: Path, difficulty: str) -> Path:
    return directory / f"{difficulty}.zarr"


def run(arguments: argparse.Namespace) -> None:
    directory, difficulty = arguments.directory, arguments.difficulty
    directory.mkdir(parents=True, exist_ok=True)
    build = ["treeopo", "mcts", "build", "-o", store(directory, difficulty), "--limit", PROBLEMS]
    build += ["--problems", f"staged-arithmetic:{difficulty}:train"]
    if not store(directory, difficulty).exists():
        subprocess.run(list(map(str, build)), check=True)
    with ThreadPoolExecutor(arguments.jobs) as threads:
        runs = [
            threads.submit(train, directory, name, seed, difficulty, arguments.split, arguments.steps)
            for seed in arguments.seeds
            for name in arguments.names
        ]
        for each in runs:
            each.result()


Curve = dict[int, tuple[float, float]]
"""Of one run by step: completions so far, and root pass@1."""


def curve(path: Path) -> Curve:
    """Empty while nothing is evaluated."""
    metrics = read_metrics(path / "metrics.jsonl")
    if after := read_evaluations(path / AFTER):
        return {metrics[-1]["step"]: (0.0, after[0].scores[0].greedy.estimate)}
    scores = {row["step"]: row["eval/pass_at_1"] for row in read_metrics(path / "evaluations.jsonl")}
    spent = {0: 0.0} | {row["step"]: row["spent/completions_so_far"] for row in metrics if row["step"] in scores}
    return {step: (spent[step], scores[step]) for step in sorted(scores)}


def report(arguments: argparse.Namespace) -> None:
    for group in sorted(path for path in arguments.directory.iterdir() if (path / "grpo").is_dir()):
        curves = {name: of_seeds(group / name) for name in CONFIGURATIONS if (group / name).is_dir()}
        if curves["grpo"]:
            show(group.name, {name: by_seed for name, by_seed in curves.items() if by_seed})


def of_seeds(configuration: Path) -> dict[int, Curve]:
    """The complete runs of a configuration."""
    curves = {int(run.parent.name): curve(run.parent) for run in sorted(configuration.glob("*/adapter"))}
    return {seed: found for seed, found in curves.items() if found}


def show(title: str, curves: dict[str, dict[int, Curve]]) -> None:
    grpo = curves["grpo"]
    goal = float(np.mean([final(each) for each in grpo.values()]))
    steps = sorted(next(iter(grpo.values())))
    print(f"\n{title}: root pass@1, mean and 95 % interval over seeds\n")
    print("| configuration | seeds | " + " | ".join(f"step {step}" for step in steps[1:]), end=" | ")
    print("completions | minus grpo, seed by seed | completions to where grpo ends |")
    print("|---" * (len(steps) + 4) + "|")
    for name, by_seed in curves.items():
        columns = [str(len(by_seed))]
        columns += [interval([each[step][1] for each in by_seed.values() if step in each]) for step in steps[1:]]
        columns.append(f"{np.mean([max(each.values())[0] for each in by_seed.values()]):,.0f}")
        paired = [final(each) - final(grpo[seed]) for seed, each in by_seed.items() if seed in grpo]
        columns.append("" if name == "grpo" else interval(paired))
        columns.append(reached(list(by_seed.values()), goal))
        print(f"| {name} | " + " | ".join(columns) + " |")


def final(of_run: Curve) -> float:
    return of_run[max(of_run)][1]


def interval(values: Sequence[float]) -> str:
    """Mean, and the half-width of Student's interval where there are two seeds or more; nothing of nothing."""
    if not values:
        return ""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


def reached(runs: Sequence[Curve], goal: float) -> str:
    """Completions at which the mean over seeds is first at `goal`, between two evaluations by a straight line."""
    steps = sorted(runs[0])
    spent = np.array([np.mean([each[step][0] for each in runs]) for step in steps])
    score: npt.NDArray[np.float64] = np.array([np.mean([each[step][1] for each in runs]) for step in steps])
    above = np.flatnonzero(score >= goal)
    if not len(above):
        return "never"
    if above[0] == 0:
        return "0"
    before, after = above[0] - 1, above[0]
    share = (goal - score[before]) / (score[after] - score[before])
    return f"{spent[before] + share * (spent[after] - spent[before]):,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    running, reporting = parts.add_parser("run"), parts.add_parser("report")
    for part, function in ((running, run), (reporting, report)):
        part.add_argument("directory", type=Path)
        part.set_defaults(function=function)
    running.add_argument("--difficulty", choices=("sparse", "easy"), default="sparse")
    running.add_argument("--split", choices=("validation", "test"), default="test")
    running.add_argument("--seeds", type=int, nargs="+", default=range(5))
    running.add_argument("--steps", type=int, default=80)
    running.add_argument("--names", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    running.add_argument("--jobs", type=int, default=1, help="runs at once")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
