"""pass@1 over an engine, two models compared, and what is written to disk."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from treeopo.engines.scripted import CharTokenizer, ScriptedEngine, TreeWorld
from treeopo.errors import EngineError, ModelError, ProblemError, RunError
from treeopo.evaluation.accuracy import Graded, Question, Scores, complete_and_grade
from treeopo.evaluation.answers import Answers, read_evaluations
from treeopo.evaluation.comparison import compare_models
from treeopo.problems.graders.number import number_answer
from treeopo.run.models import BASE, resolve

SURE = TreeWorld(branching=1, depth=1, success=lambda letters: 1.0)
COIN = TreeWorld(branching=1, depth=1, success=lambda letters: 0.5)


async def read_answer(text: str) -> str:
    return number_answer(text)


def questions(world: TreeWorld, count: int) -> list[Question]:
    problems = [world.problem(f"p{index}") for index in range(count)]
    return [Question(problem, CharTokenizer().encode(problem.question)) for problem in problems]


async def scores(
    world: TreeWorld,
    samples: int,
    *,
    seed: int = 0,
    max_new_tokens: int = 50,
    count: int = 40,
    grade_cut: bool = False,
    done: Mapping[tuple[str, int], Graded] | None = None,
    on_completion: Callable[[Graded], None] = lambda graded: None,
) -> Scores:
    return await complete_and_grade(
        questions(world, count),
        ScriptedEngine(world),
        world.grade,
        read_answer,
        max_new_tokens=max_new_tokens,
        samples=samples,
        seed=seed,
        grade_cut=grade_cut,
        on_completion=on_completion,
        done=done,
    )


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


@pytest.mark.parametrize("grade_cut", [False, True])
async def test_completions_that_run_out_of_tokens_are_graded_where_that_is_asked_for(grade_cut: bool) -> None:
    whole = len("a\n\n#### 1")  # there is no room for its end
    result = await scores(SURE, samples=1, max_new_tokens=whole, grade_cut=grade_cut)
    assert result.pass_at_1 == result.sampled.mean() == grade_cut
    assert set(result.answers) == {("1",) if grade_cut else ("",)}
    assert result.truncated == 80


async def test_an_evaluation_without_problems_is_refused() -> None:
    with pytest.raises(ProblemError, match="no problem to evaluate"):
        await scores(SURE, samples=0, count=0)


async def test_problems_that_share_an_id_are_refused() -> None:
    twice = questions(SURE, 1) * 2
    with pytest.raises(ProblemError, match="'p0' occurs twice"):
        await complete_and_grade(
            twice, ScriptedEngine(SURE), SURE.grade, read_answer, max_new_tokens=9, samples=0, seed=0
        )


async def test_a_stopped_evaluation_goes_on_to_the_same_scores_and_asks_only_for_what_is_missing() -> None:
    whole: list[Graded] = []
    expected = await scores(COIN, samples=3, count=10, on_completion=whole.append)
    assert len(whole) == 40
    done = {(graded.problem_id, graded.sample): graded for graded in whole[:25]}
    rest: list[Graded] = []
    again = await scores(COIN, samples=3, count=10, done=done, on_completion=rest.append)
    assert {(graded.problem_id, graded.sample) for graded in rest}.isdisjoint(done)
    assert len(rest) == 15
    assert np.array_equal(again.sampled, expected.sampled)
    assert np.array_equal(again.greedy, expected.greedy)
    assert again.answers == expected.answers


async def test_the_answers_of_samples_are_kept_for_voting() -> None:
    result = await scores(COIN, samples=4, count=6)
    for answers, rewards in zip(result.answers, result.sampled, strict=True):
        assert [answer == "1" for answer in answers] == (rewards == 1).tolist()


async def test_an_engine_s_error_is_raised_as_it_is() -> None:
    engine = ScriptedEngine(SURE, failures={3: EngineError("refused")})
    with pytest.raises(EngineError, match="refused"):
        await complete_and_grade(
            questions(SURE, 9), engine, SURE.grade, read_answer, max_new_tokens=9, samples=0, seed=0
        )
    assert engine.in_flight == 0


def outcome(greedy: list[int], sampled: list[list[int]]) -> Scores:
    ids = tuple(map(str, range(len(greedy))))
    answers = tuple(tuple("yes" if right else "no" for right in row) for row in sampled)
    return Scores(ids, np.array(greedy, float), np.array(sampled, float).reshape(len(greedy), -1), answers, 0)


def test_two_models_are_compared_by_problem() -> None:
    better, worse = outcome([1, 1, 1, 0] * 25, [[]] * 100), outcome([0, 1, 1, 0] * 25, [[]] * 100)
    result = compare_models("set", ["better", "worse"], [better, worse])
    assert result.difference is not None
    difference = result.difference.greedy
    assert difference.estimate == pytest.approx(0.25)
    assert 0 < difference.low < 0.25 < difference.high < 0.4
    assert result.difference.p_value == pytest.approx(2 * 0.5**25)
    assert result.difference.sampled is None
    assert [row.greedy.estimate for row in result.scores] == [0.75, 0.5]
    assert all(row.sampled is None and not row.majority_at for row in result.scores)


def test_samples_are_reported_by_powers_of_two_and_all_of_them() -> None:
    (score,) = compare_models("set", ["one"], [outcome([1, 0], [[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]])]).scores
    assert list(score.pass_at) == [1, 2, 4, 6]
    assert list(score.majority_at) == [4, 6]
    assert score.sampled is not None
    assert score.sampled.estimate == pytest.approx((3 / 6 + 1 / 6) / 2)
    assert score.pass_at[6].estimate == 1
    assert score.majority_at[6].estimate == pytest.approx((0.5 + 0) / 2)  # a tie, and a wrong majority


def graded(problem: str, sample: int = 0) -> Graded:
    return Graded(problem, sample, "so\n\n#### 1", "1", 1.0, truncated=False, tokens=7)


def test_scores_and_completions_are_written_and_read_back(tmp_path: Path) -> None:
    result = (compare_models("set", ["one"], [outcome([1, 0], [[1, 0], [0, 0]])]),)
    assert read_evaluations(tmp_path / "out") is None
    with Answers(tmp_path / "out", {"seed": 0}) as answers:
        answers.add("set", "one", graded("p0"))
        answers.finish(result)
    assert read_evaluations(tmp_path / "out") == result
    (line,) = (tmp_path / "out" / "completions.jsonl").read_text().splitlines()
    assert json.loads(line) == {"problems": "set", "model": "one", **asdict(graded("p0"))}


def test_completions_of_a_killed_evaluation_are_found_again_but_for_a_torn_line(tmp_path: Path) -> None:
    with Answers(tmp_path, {"seed": 0}) as answers:
        answers.add("set", "one", graded("p0"))
        answers.add("set", "two", graded("p0", 1))
    with (tmp_path / "completions.jsonl").open("a") as file:
        file.write('{"problems": "set", "mod')
    with Answers(tmp_path, {"seed": 0}) as again:
        assert again.done("set", "one") == {("p0", 0): graded("p0")}
        assert again.done("set", "two") == {("p0", 1): graded("p0", 1)}
        assert again.done("other", "one") == {}
        assert again.done_count == 2
        again.add("set", "one", graded("p1"))
    assert len((tmp_path / "completions.jsonl").read_text().splitlines()) == 3


def test_an_output_that_holds_another_evaluation_is_left_alone(tmp_path: Path) -> None:
    with Answers(tmp_path, {"seed": 0}) as answers:
        answers.add("set", "one", graded("p0"))
    with pytest.raises(RunError, match="evaluation with other settings"):
        Answers(tmp_path, {"seed": 1})
    assert len((tmp_path / "completions.jsonl").read_text().splitlines()) == 1


def test_an_evaluation_that_version_0_1_began_is_gone_on_with(tmp_path: Path) -> None:
    with Answers(tmp_path, {"grading": {"family": "math", "retries": 2}}) as answers:
        answers.add("set", "one", graded("p0"))
    with Answers(tmp_path, {"grading": {"grader": "math", "retries": 2}}) as again:
        assert again.done_count == 1
    with pytest.raises(RunError, match="evaluation with other settings"):
        Answers(tmp_path, {"grading": {"grader": "number", "retries": 2}})


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file: cannot be written"):
        Answers(tmp_path / "file", {})


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
