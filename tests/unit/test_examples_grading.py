"""The examples of a grader and a problem set are short, and work: from the function's rows to a store and to scores."""

import ast
import random
from pathlib import Path

import numpy as np
import pytest
from treeopo_storage import MemoryTreeStore, StoreMeta

from treeopo.engines.scripted import CharTokenizer, Pieces, ScriptedEngine
from treeopo.evaluation.accuracy import Question, complete_and_grade
from treeopo.evaluation.comparison import compare_models
from treeopo.problems import load_problem_set
from treeopo.problems.graders import open_grader
from treeopo.problems.prompting import Prompter, PromptSettings
from treeopo.problems.settings import GradingSettings
from treeopo.search.build import build_trees
from treeopo.search.settings import SearchSettings

EXAMPLES = Path(__file__).parents[2] / "examples"
GRADER = "examples.grader:NearMiss"
SUMS = f"examples.problem_set:sums?grader={GRADER}[:6]"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)


def policy(prompt: str, rng: random.Random, version: int) -> Pieces:
    """Adds, and is often wrong by one or by a hundred."""
    first = int(prompt.rpartition("What is ")[2].partition(" +")[0])
    return [(f"#### {2 * first + 1 + rng.choice((0, 1, 100))}", -1.0)]


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    tree = ast.parse(path.read_text())
    documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docs = {
        line
        for node in documented
        if ast.get_docstring(node)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    lines = enumerate(path.read_text().splitlines(), start=1)
    return sum(bool(text.strip()) and not text.strip().startswith("#") and n not in docs for n, text in lines)


@pytest.mark.parametrize("name", ["grader.py", "problem_set.py"])
def test_an_example_has_under_20_lines_of_code(name: str) -> None:
    assert 5 < code_lines(EXAMPLES / name) < 20


async def test_a_store_is_built_from_a_function_s_rows_and_keeps_fractional_rewards() -> None:
    problem_set = load_problem_set(SUMS)
    assert (problem_set.grader, len(problem_set)) == (GRADER, 6)
    assert problem_set.spec == f"examples.problem_set:sums:train?grader={GRADER}[:6]"
    tokenizer = CharTokenizer()
    store = MemoryTreeStore(StoreMeta(tokenizer_fingerprint="characters", teacher="scripted", search={}))
    with store.open_writer() as writer:
        async with open_grader(problem_set.grader, GradingSettings(workers=1)) as grader:
            progress = await build_trees(
                problem_set.problems,
                0,
                lambda problem: tokenizer.encode(problem_set.prompt(problem)),
                ScriptedEngine(policy),
                grader,
                tokenizer,
                SearchSettings(rollouts=8, branching=4, reward="both"),
                seed=1,
                commit=writer.append,
                answer=grader.answer,
            )
    structure = store.open_store().structure()
    rewards = structure.reward[structure.terminal].astype(float).round(6)
    assert set(rewards.tolist()) == {0.0, 0.3, 1.0}
    assert progress.solved == len(np.unique(structure.problem[structure.terminal & (structure.reward == 1)]))


async def test_a_model_is_evaluated_on_them_with_honest_intervals() -> None:
    problem_set = load_problem_set(SUMS, split="test")
    assert problem_set.problems[0].id == "sum-60"
    tokenizer = CharTokenizer()
    prompter = Prompter(tokenizer, PromptSettings(), problem_set)  # type: ignore[arg-type]  # no chat is asked for
    questions = [Question(problem, prompter(problem)) for problem in problem_set]
    async with open_grader(problem_set.grader, GradingSettings(workers=1)) as grader:
        scores = await complete_and_grade(
            questions, ScriptedEngine(policy), grader, grader.answer, max_new_tokens=40, samples=4, seed=0
        )
    assert set(np.round(scores.sampled, 6).ravel()) == {0.0, 0.3, 1.0}
    (score,) = compare_models(problem_set.spec, ["policy"], [scores]).scores
    assert score.sampled is not None
    assert score.sampled.estimate == pytest.approx(scores.sampled.mean())
    assert all(answer.isdigit() for answers in scores.answers for answer in answers)
