"""pass@1 over an engine, two models compared, and what is written to disk."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from treeopo.engines.scripted import CharTokenizer, ScriptedEngine, TreeWorld
from treeopo.errors import EngineError, ModelError, ProblemError, RunError
from treeopo.evaluation.accuracy import Graded, Scores, evaluate
from treeopo.evaluation.answers import Answers
from treeopo.evaluation.comparison import compare, read_evaluation
from treeopo.serving import BASE, resolve

SURE = TreeWorld(branching=1, depth=1, success=lambda letters: 1.0)
COIN = TreeWorld(branching=1, depth=1, success=lambda letters: 0.5)


async def scores(world: TreeWorld, samples: int, *, seed: int = 0, max_new_tokens: int = 50, count: int = 40) -> Scores:
    problems = [world.problem(f"p{index}") for index in range(count)]
    prompts = [CharTokenizer().encode(problem.question) for problem in problems]
    graded: list[Graded] = []
    result = await evaluate(
        problems,
        prompts,
        ScriptedEngine(world),
        world.grade,
        max_new_tokens=max_new_tokens,
        samples=samples,
        seed=seed,
        on_completion=graded.append,
    )
    assert len(graded) == count * (1 + samples)
    return result


async def test_a_model_that_is_always_right_scores_one() -> None:
    result = await scores(SURE, samples=2)
    assert result.pass_at_1 == 1.0
    assert result.sampled.shape == (40, 2)
    assert result.sampled.all()


async def test_sampled_accuracy_is_near_the_chance_of_success_and_fixed_by_the_seed() -> None:
    first, again, other = [await scores(COIN, samples=20, seed=seed) for seed in (0, 0, 1)]
    assert abs(first.sampled.mean() - 0.5) < 0.1  # 800 samples: over five standard errors
    assert np.array_equal(first.sampled, again.sampled)
    assert not np.array_equal(first.sampled, other.sampled)


async def test_completions_that_run_out_of_tokens_are_wrong_and_counted() -> None:
    result = await scores(SURE, samples=1, max_new_tokens=3)
    assert result.pass_at_1 == 0
    assert result.truncated == 80


async def test_an_evaluation_without_problems_is_refused() -> None:
    with pytest.raises(ProblemError, match="no problem to evaluate"):
        await scores(SURE, samples=0, count=0)


async def test_an_engine_s_error_is_raised_as_it_is() -> None:
    engine = ScriptedEngine(SURE, failures={3: EngineError("refused")})
    problems = [SURE.problem(f"p{index}") for index in range(9)]
    prompts = [CharTokenizer().encode(problem.question) for problem in problems]
    with pytest.raises(EngineError, match="refused"):
        await evaluate(
            problems,
            prompts,
            engine,
            SURE.grade,
            max_new_tokens=9,
            samples=0,
            seed=0,
            on_completion=lambda graded: None,
        )
    assert engine.in_flight == 0


def outcome(greedy: list[int], sampled: list[list[int]]) -> Scores:
    ids = tuple(map(str, range(len(greedy))))
    return Scores(ids, np.array(greedy, float), np.array(sampled, float).reshape(len(greedy), -1), 0)


def test_two_models_are_compared_by_problem() -> None:
    better, worse = outcome([1, 1, 1, 0] * 25, [[]] * 100), outcome([0, 1, 1, 0] * 25, [[]] * 100)
    result = compare("set", ["better", "worse"], [better, worse])
    assert result.difference is not None
    assert result.difference.estimate == pytest.approx(0.25)
    assert 0 < result.difference.low < 0.25 < result.difference.high < 0.4
    assert [row.greedy.estimate for row in result.scores] == [0.75, 0.5]
    assert all(row.sampled is None for row in result.scores)


def test_scores_and_completions_are_written_and_read_back(tmp_path: Path) -> None:
    result = compare("set", ["one"], [outcome([1, 0], [[1, 0], [0, 0]])])
    with Answers(tmp_path / "out") as answers:
        answers.add("one", Graded("p0", 0, "#### 1", 1.0, truncated=False))
        answers.finish(result)
    assert read_evaluation(tmp_path / "out" / "scores.json") == result
    (line,) = (tmp_path / "out" / "completions.jsonl").read_text().splitlines()
    assert json.loads(line) == {"model": "one", **asdict(Graded("p0", 0, "#### 1", 1.0, truncated=False))}
    assert read_evaluation(tmp_path / "absent.json") is None


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file: cannot be written"):
        Answers(tmp_path / "file")


def test_a_name_means_a_model_an_adapter_or_a_run(tmp_path: Path) -> None:
    assert resolve("Qwen/Qwen2.5-0.5B").adapter is None
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    served = resolve(str(adapter))
    assert (served.base, served.adapter) == ("some/base", adapter)
    assert (served.without_adapter().label, served.without_adapter().base) == (BASE, "some/base")


def test_an_adapter_that_names_no_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no base model"):
        resolve(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{torn")
    with pytest.raises(ModelError, match="not the description of a PEFT adapter"):
        resolve(str(tmp_path))


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.json").write_text('{"config": {"store": "s", "output": "o"}}')
    with pytest.raises(RunError, match="no checkpoint yet"):
        resolve(str(tmp_path))
