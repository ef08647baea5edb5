"""A real pretrained model, from its file to a better score, on two CPU cores: `make real`, or

    python examples/smollm2/real.py [DIRECTORY]

    package index ─▶ base ─▶ student, tuned a little ──────────────────┬─▶ tree-opo ─┬─▶ held-out problems ─▶ table
                                └─▶ teacher, tuned longer ─▶ trees ────┴─▶ grpo ─────┘

Every stage is a command that could be typed, and is printed. What is done is not done again, and a stage that was
stopped goes on where it was: give the same command. The table is kept as DIRECTORY/table.md.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from treeopo.evaluation.accuracy import Scores
from treeopo.evaluation.comparison import compare_models
from treeopo.evaluation.intervals import Interval

HERE = Path(__file__).parent
TREEOPO = Path(sys.executable).with_name("treeopo")
CHAT = ["--prompt", "chat", "--set", f"prompt.template={HERE / 'question.txt'}"]
METHODS = ("tree-opo", "grpo")
EVALUATION = ["--problems", "staged-arithmetic:easy:test", "--limit", "300", "--samples", "4"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A command of treeopo, and the minutes it took on two cores, for the time left."""

    name: str
    minutes: float
    command: Callable[[], list[object]]


def stages(directory: Path) -> list[Stage]:
    base, student, teacher, trees = (directory / name for name in ("base", "student", "teacher", "trees.zarr"))
    template = f"prompt.template={HERE / 'question.txt'}"
    tune = ["--config", HERE / "tune.toml", "--set", f"solutions.{template}"]
    train = [trees, "--student", student, "--config", HERE / "train.toml"]
    search: list[object] = [TREEOPO, "mcts", "build", "--config", HERE / "trees.toml", "--set", template]
    held_out = ["--config", HERE / "eval.toml", "--set", template]

    def merged(name: str) -> Stage:
        command: list[object] = [TREEOPO, "export", directory / f"{name}-run", "--merge", directory / name]
        return Stage(f"{name}, merged", 0.3, lambda: command)

    def evaluated(name: str) -> Stage:
        command: list[object] = [TREEOPO, "eval", directory / name, *held_out, "-o", directory / "scores" / name]
        return Stage(f"{name} on held-out problems", 1.5, lambda: command)

    return [
        Stage("base", 0.5, lambda: [sys.executable, HERE / "fetch.py", base]),
        trained("student", 5, directory / "student-run", [*tune, "--student", base, "--steps", 36, "--seed", 1]),
        merged("student"),
        trained("teacher", 9, directory / "teacher-run", [*tune, "--student", student, "--steps", 80, "--seed", 2]),
        merged("teacher"),
        Stage("trees", 3, lambda: [*search, "--teacher", teacher, "-o", trees]),
        *(trained(method, 10, directory / method, [*train, "--method", method]) for method in METHODS),
        *(evaluated(name) for name in ("student", "teacher", *METHODS)),
    ]


def trained(name: str, minutes: float, run: Path, new: list[object]) -> Stage:
    def command() -> list[object]:
        return [TREEOPO, "train", *(["--resume", run] if (run / "config.json").exists() else [*new, "-o", run])]

    return Stage(name, minutes, command)


def work(directory: Path) -> None:
    """Every stage that is not done, in order.

    Raises:
        SystemExit: a stage failed or was stopped.
    """
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "stages.jsonl"
    done = {json.loads(line)["stage"] for line in log.read_text().splitlines()} if log.exists() else set()
    todo = [stage for stage in stages(directory) if stage.name not in done]
    taken = planned = 0.0
    for number, stage in enumerate(todo):
        left = (taken / planned if planned else 1) * sum(each.minutes for each in todo[number:])
        command = list(map(str, stage.command()))
        print(f"\n{stage.name} ({number + 1} of {len(todo)}; about {left:.0f} minutes left in all)")
        print(f"$ {shlex.join([Path(command[0]).name, *command[1:]])}", flush=True)
        began = time.monotonic()
        if status := subprocess.run(command, check=False).returncode:
            sys.exit(f"{stage.name}: stopped, status {status}; the same command goes on from here")
        seconds = time.monotonic() - began
        with log.open("a") as file:
            file.write(json.dumps({"stage": stage.name, "seconds": round(seconds, 1)}) + "\n")
        taken, planned = taken + seconds / 60, planned + stage.minutes


def scores(directory: Path) -> Scores:
    """What an evaluation kept, problems in the order of their names."""
    rows = [json.loads(line) for line in (directory / "completions.jsonl").read_text().splitlines()]
    rows.sort(key=lambda row: (row["problem_id"], row["sample"]))
    ids = sorted({row["problem_id"] for row in rows})
    reward_MS = np.array([row["reward"] for row in rows], dtype=np.float64).reshape(len(ids), -1)
    answers = np.array([row["answer"] for row in rows]).reshape(reward_MS.shape)[:, 1:]
    cut = sum(row["truncated"] for row in rows)
    return Scores(tuple(ids), reward_MS[:, 0], reward_MS[:, 1:], tuple(map(tuple, answers.tolist())), cut)


def table(directory: Path) -> str:
    """Accuracy of each model, and what differs from the student and from grpo, problem by problem; 95 % intervals."""
    found = {name: scores(directory / "scores" / name) for name in ("student", "teacher", *METHODS)}
    lines = ["| model | greedy pass@1 | sampled pass@1 | minus student, greedy | minus student, sampled |"]
    lines.append("|---" * 5 + "|")
    for name in found:
        greedy, sampled, *minus = compared(found, name, "student")
        row = [name, greedy, sampled, *(minus if name in METHODS else ["", ""])]
        lines.append(f"| {' | '.join(row)} |")
    first, second = METHODS
    _, _, greedy, sampled = compared(found, first, second)
    how_many = f"{len(found[first].problem_ids)} problems, one seed"
    lines += ["", f"{first} minus {second}, as many completions: greedy {greedy}, sampled {sampled}; {how_many}"]
    return "\n".join(lines)


def compared(found: dict[str, Scores], name: str, other: str) -> list[str]:
    """Greedy and sampled pass@1 of a model, and of both what it has more than the other."""
    both = compare_models("", [name, other], [found[name], found[other]])
    score, difference = both.scores[0], both.difference
    assert difference is not None
    return [shown(score.greedy), shown(score.sampled), shown(difference.greedy), shown(difference.sampled)]


def shown(interval: Interval | None) -> str:
    assert interval is not None, "the evaluations have no samples"
    return f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"


if __name__ == "__main__":
    if len(sys.argv) > 2 or (given := Path((sys.argv[1:] or ["real"])[0])).name.startswith("-"):
        sys.exit("usage: python examples/smollm2/real.py [DIRECTORY]")
    try:
        work(given)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    (given / "table.md").write_text(table(given) + "\n")
    print(f"\n{table(given)}\n\nkept as {given / 'table.md'}")
