"""Names of problem sets, as a person types them.

spec        = generated | path
generated   = "staged-arithmetic" [":" difficulty] [":" split]
difficulty  = "easy" (2-5 steps, the default) | "sparse" (5-6 steps)
split       = "train" (the default) | "validation" | "test"
path        = a file in GSM8K's published JSON Lines, e.g. data/gsm8k/test.jsonl
"""

from pathlib import Path

from treeopo.errors import ProblemError
from treeopo.problems import staged_arithmetic
from treeopo.problems.gsm8k import read_gsm8k
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.settings import Family
from treeopo.problems.staged_arithmetic import Difficulty, Split
from treeopo.records import Problem

_GRAMMAR = f"{staged_arithmetic.NAME}[:{'|'.join(Difficulty)}][:{'|'.join(Split)}]"


def load_problems(spec: str, limit: int | None = None) -> list[Problem]:
    """The problems named by `spec` (grammar above), at most `limit`, always in the same order.

    Raises `ProblemError` for an unknown name, a missing file or a bad row (named by file and line).
    """
    if limit is not None and limit < 1:
        raise ProblemError(f"limit {limit}: ask for at least one problem, or leave the limit out for all")
    name, *parts = spec.split(":")
    if name == staged_arithmetic.NAME:
        difficulty, split = _parse(spec, parts)
        return staged_arithmetic.staged_arithmetic(difficulty, split, limit or staged_arithmetic.SIZES[split])
    path = Path(spec).expanduser()
    if not path.is_file():
        raise ProblemError(f"no problem set or file {spec!r}; give {_GRAMMAR} or the path of a GSM8K JSON Lines file")
    return read_gsm8k(path, -1 if limit is None else limit)


def load_problem_set(spec: str, limit: int | None = None, family: Family | None = None) -> ProblemSet:
    """`load_problems` with the prompt template and the family that belong to them, or the one given."""
    own = Family.NUMBER_STRICT if spec.split(":")[0] == staged_arithmetic.NAME else Family.NUMBER
    return ProblemSet(spec, tuple(load_problems(spec, limit)), family=family or own)


def _parse(spec: str, parts: list[str]) -> tuple[Difficulty, Split]:
    difficulty, split = Difficulty.EASY, Split.TRAIN
    remaining = list(parts)
    if remaining and remaining[0] in list(Difficulty):
        difficulty = Difficulty(remaining.pop(0))
    if remaining and remaining[0] in list(Split):
        split = Split(remaining.pop(0))
    if remaining:
        raise ProblemError(f"problem set {spec!r}: {remaining[0]!r} does not belong there; give {_GRAMMAR}")
    return difficulty, split
