"""Every number that decides what the embedded models are, and the key under which they are cached."""

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import islice

from treeopo.problems.staged_arithmetic import Difficulty
from treeopo.tiny.corpus import clean_texts, misread_texts

EXAMPLES_IN_KEY = 64
"""So many texts of each corpus are hashed with the numbers: a change of their wording is a change of recipe."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One supervised training."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """How student and teacher of one difficulty are made. `read_right` is the student's, by operation + - * /."""

    difficulty: Difficulty
    teacher: Phase
    student: Phase
    read_right: tuple[float, float, float, float]
    vocabulary: int = 384
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    positions: int = 1024
    version: int = 1

    @property
    def read_right_by_op(self) -> dict[str, float]:
        return dict(zip("+-*/", self.read_right, strict=True))

    def key(self) -> str:
        """Hash of the numbers and of the first texts of both corpora."""
        clean = clean_texts(self.difficulty, self.teacher.seed)
        misread = misread_texts(self.difficulty, self.read_right_by_op, self.student.seed)
        texts = [*islice(clean, EXAMPLES_IN_KEY), *islice(misread, EXAMPLES_IN_KEY)]
        return hashlib.sha256(json.dumps([asdict(self), texts]).encode()).hexdigest()[:16]


RECIPES = {
    Difficulty.EASY: ModelRecipe(
        Difficulty.EASY,
        teacher=Phase(steps=1800, batch_size=32, learning_rate=2.5e-3, seed=1),
        student=Phase(steps=200, batch_size=32, learning_rate=1e-3, seed=2),
        read_right=(0.85, 0.75, 0.4, 0.45),
    ),
    Difficulty.SPARSE: ModelRecipe(
        Difficulty.SPARSE,
        teacher=Phase(steps=1800, batch_size=32, learning_rate=2.5e-3, seed=1),
        student=Phase(steps=200, batch_size=32, learning_rate=1e-3, seed=2),
        read_right=(0.3, 0.3, 0.15, 0.15),
    ),
}
