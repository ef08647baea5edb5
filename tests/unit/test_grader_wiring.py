"""The family of a problem set reaches the store, the trainer and the scores."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from treeopo_storage import MemoryTreeStore, StoreMeta, TreeStore

from treeopo.config import BuildConfig, EvalConfig, TrainConfig, load_config
from treeopo.engines.scripted import CharTokenizer, ScriptedEngine, TreeWorld
from treeopo.errors import ConfigError, RunError
from treeopo.evaluation.accuracy import Scores
from treeopo.evaluation.comparison import compare
from treeopo.problems.grader import open_grader
from treeopo.problems.settings import GRADER_KEY, Family, GradingSettings
from treeopo.recipes import Running, family, recipe
from treeopo.records import Completion, FinishReason, Request
from treeopo.rollout.meter import EngineMeter
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings


def config(**flags: Any) -> TrainConfig:
    return load_config(TrainConfig, file=None, flags={"store": "s", "output": "o", "student": "m", **flags})


async def store_of(world: TreeWorld, search: dict[str, str], answer: str) -> TreeStore:
    store = MemoryTreeStore(StoreMeta(tokenizer_fingerprint="characters", teacher="scripted", search=search))
    problem = replace(world.problem("p"), answer=answer)
    prompt = CharTokenizer().encode(problem.question)
    settings = SearchSettings(rollouts=6, depth=4)
    tree = await search_problem(problem, prompt, ScriptedEngine(world), world.grade, CharTokenizer(), settings, seed=0)
    with store.open_writer() as writer:
        writer.append([tree])
    return store.open_store()


class Says:
    """An engine that answers every prompt alike."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def generate(self, request: Request) -> Completion:
        ids = np.arange(3, dtype=np.int32)
        return Completion(ids, np.zeros(3, np.float32), np.zeros(3, np.int32), self.text, FinishReason.STOP)


@pytest.mark.parametrize(
    ("grader", "completion", "reward"),
    [
        ("math", r"so \boxed{0.5 + 0}", 1.0),
        ("math", "#### 0.5", 0.0),
        ("number", r"so \boxed{0.5}", 1.0),
        ("number-strict", r"so \boxed{0.5}", 0.0),
        ("number-strict", "#### 1/2", 1.0),
    ],
)
async def test_a_batch_is_graded_by_the_family_that_its_store_names(
    world: TreeWorld, grader: str, completion: str, reward: float
) -> None:
    store = await store_of(world, {GRADER_KEY: grader}, r"\frac{1}{2}" if grader == "math" else "0.5")
    settings = config()
    async with open_grader(family(settings, store), GradingSettings(workers=1)) as grade:
        running: Any = Running(None, Says(completion), EngineMeter(8), grade)  # type: ignore[arg-type]
        unused: Any = None  # the tokenizer: rollouts have their tokens in the store
        batch = await recipe(settings, store, unused).bind(running)(0)
    assert batch.metrics["reward"] == reward


async def test_a_store_that_names_no_grader_holds_numbers_unless_the_run_says_otherwise(world: TreeWorld) -> None:
    imported = await store_of(world, {"traces": "mine.jsonl"}, "1")
    assert family(config(), imported) is Family.NUMBER
    assert family(config(**{"grading.family": "math"}), imported) is Family.MATH


async def test_an_unknown_grader_is_refused_with_the_known_ones(world: TreeWorld) -> None:
    with pytest.raises(RunError, match=r"unknown grader .oracle.; set grading.family to one of number, number-strict"):
        family(config(), await store_of(world, {GRADER_KEY: "oracle"}, "1"))


@pytest.mark.parametrize(("kind", "given"), [(BuildConfig, {"output": "o"}), (EvalConfig, {})])
def test_grading_is_set_like_any_other_setting_and_checks_itself(kind: Any, given: dict[str, str]) -> None:
    made = load_config(kind, file=None, flags={**given, "grading.workers": 3, "grading.on_failure": "retry"})
    assert (made.grading.workers, made.grading.attempts) == (3, 3)
    with pytest.raises(ConfigError, match="deadline_seconds is -1"):
        load_config(kind, file=None, flags={**given, "grading.deadline_seconds": -1})
    with pytest.raises(ConfigError, match="unknown setting speed"):
        load_config(kind, file=None, flags={**given, "grading.speed": 1})


def test_scores_carry_what_grading_cost() -> None:
    cost = {"grader_timeouts": 2.0, "grader_restarts": 1.0}
    scores = Scores(("a", "b"), np.array([1.0, 0.0]), np.zeros((2, 0)), ((), ()), truncated=1, grader=cost)
    (score,) = compare("math500:test", ["model"], [scores]).scores
    assert (score.truncated, score.grader_timeouts, score.grader_restarts) == (1, 2, 1)
