"""The grader of a problem set reaches the store, the trainer and the scores."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from treeopo_storage import MemoryTreeStore, StoreMeta, TreeStore

from treeopo.config import BuildConfig, EvalConfig, TrainConfig, load_config
from treeopo.engines.scripted import CharTokenizer, ScriptedEngine, TreeWorld
from treeopo.errors import ConfigError, RunError
from treeopo.evaluation.accuracy import Scores
from treeopo.evaluation.comparison import compare_models
from treeopo.problems.graders import open_grader
from treeopo.problems.settings import GRADER_KEY, GradingSettings
from treeopo.recipes.batches import Services, grader_name, training_data
from treeopo.records import Completion, FinishReason, Request
from treeopo.rollout.meter import EngineMeter
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings
from treeopo.timeline import Timeline


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
async def test_a_batch_is_graded_by_the_grader_that_its_store_names(
    world: TreeWorld, grader: str, completion: str, reward: float
) -> None:
    store = await store_of(world, {GRADER_KEY: grader}, r"\frac{1}{2}" if grader == "math" else "0.5")
    settings = config()
    async with open_grader(grader_name(settings, store), GradingSettings(workers=1)) as grade:
        unused: Any = None  # tokenizer and reference: rollouts have their tokens in the store, and need no other model
        services = Services(Says(completion), EngineMeter(8), Timeline(), grade, None, unused)
        batch = await training_data(settings, store, unused).batches(services)(0)
    assert batch.metrics["rollout/reward"] == reward


async def test_a_store_that_names_no_grader_holds_numbers_unless_the_run_says_otherwise(world: TreeWorld) -> None:
    imported = await store_of(world, {"traces": "mine.jsonl"}, "1")
    assert grader_name(config(), imported) == "number"
    assert grader_name(config(**{"grading.grader": "math"}), imported) == "math"
    assert grader_name(config(**{"grading.family": "math"}), imported) == "math"  # its name in version 0.1


async def test_an_unknown_grader_is_refused_with_the_known_ones(world: TreeWorld) -> None:
    with pytest.raises(
        RunError, match=r"unknown grader .oracle.; use one of number, number-strict.*set grading.grader"
    ):
        grader_name(config(), await store_of(world, {GRADER_KEY: "oracle"}, "1"))
    with pytest.raises(RunError, match=r"importing gone failed \(ModuleNotFoundError"):
        grader_name(config(), await store_of(world, {GRADER_KEY: "gone:Grader"}, "1"))


@pytest.mark.parametrize("method", ["optimistic", "qp-soft"])
async def test_a_fractional_reward_ends_a_run_that_needs_0_or_1_in_one_line_that_names_method_and_grader(
    world: TreeWorld, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    store = await store_of(world, {GRADER_KEY: "examples.grader:NearMiss"}, "100")
    settings = config(**{"advantage.method": method})
    name = grader_name(settings, store)
    async with open_grader(name, GradingSettings(workers=1), settings.needs_binary) as grade:
        unused: Any = None
        services = Services(Says("#### 95"), EngineMeter(8), Timeline(), grade, None, unused)
        with pytest.raises(ConfigError) as caught:
            await training_data(settings, store, unused).batches(services)(0)
    assert f"reward 0.3 of grader {name}: advantage.method {method} needs rewards of 0 or 1" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_run_whose_advantages_are_means_learns_from_fractional_rewards(
    world: TreeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    store = await store_of(world, {GRADER_KEY: "examples.grader:NearMiss"}, "100")
    async with open_grader(grader_name(config(), store), GradingSettings(workers=1), config().needs_binary) as grade:
        unused: Any = None
        services = Services(Says("#### 95"), EngineMeter(8), Timeline(), grade, None, unused)
        batch = await training_data(config(), store, unused).batches(services)(0)
    assert batch.metrics["rollout/reward"] == pytest.approx(0.3)


@pytest.mark.parametrize(("kind", "given"), [(BuildConfig, {"output": "o"}), (EvalConfig, {})])
def test_grading_is_set_like_any_other_setting_and_checks_itself(kind: Any, given: dict[str, str]) -> None:
    made = load_config(kind, file=None, flags={**given, "grading.workers": 3, "grading.on_failure": "retry"})
    assert (made.grading.workers, made.grading.attempts) == (3, 3)
    with pytest.raises(ConfigError, match="deadline_seconds is -1"):
        load_config(kind, file=None, flags={**given, "grading.deadline_seconds": -1})
    with pytest.raises(ConfigError, match=r"unknown setting grading\.speed"):
        load_config(kind, file=None, flags={**given, "grading.speed": 1})


def test_scores_carry_what_grading_cost() -> None:
    cost = {"grader/timeouts": 2.0, "grader/restarts": 1.0, "grader/errors": 3.0}
    scores = Scores(("a", "b"), np.array([1.0, 0.0]), np.zeros((2, 0)), ((), ()), truncated=1, grader=cost)
    (score,) = compare_models("math500:test", ["model"], [scores]).scores
    assert (score.truncated, score.grader_timeouts, score.grader_restarts, score.grader_errors) == (1, 2, 1, 3)
