"""Golds as data sets have them, and golds that a grader cannot read."""

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from treeopo_storage import open_store

from tests.killed_run import new_run, prepare
from tests.tiny_models import byte_tokenizer
from tests.unit.test_training_start import StudentsEngine
from treeopo.config import BuildConfig, EvalConfig
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import GraderError, ProblemError
from treeopo.jobs.build import build_store
from treeopo.jobs.evaluate import evaluate
from treeopo.jobs.train import train
from treeopo.problems import load_problems
from treeopo.problems.graders import open_grader, unreadable_golds
from treeopo.problems.graders.number import parse_number
from treeopo.problems.settings import GradingSettings
from treeopo.records import Problem
from treeopo.trackers import read_metrics


def rows(path: Path, golds: list[object]) -> Path:
    path.write_text("".join(json.dumps({"q": f"Number {n}?", "a": gold}) + "\n" for n, gold in enumerate(golds)))
    return path


# zhentingqi/rStar (SVAMP's golds)
@pytest.mark.parametrize(
    ("gold", "number"),
    [
        (63.0, 63),
        (1e16, 10**16),
        (2.5e-7, Fraction(1, 4_000_000)),
        (-0.0, 0),
        (0, 0),
        (0.1, Fraction(1, 10)),
        ("90,000", 90_000),
        ("2 1/4", Fraction(9, 4)),
        ("1e+20", 10**20),
    ],
)
@pytest.mark.parametrize("family", ["number", "math"])
async def test_golds_as_json_has_numbers_are_read(tmp_path: Path, gold: object, number: object, family: str) -> None:
    path = rows(tmp_path / "p.jsonl", [gold])
    (problem,) = load_problems(f"{path}?question=q&answer=a&grader={family}")
    assert parse_number(problem.answer) == number
    plain = f"{Decimal(str(gold)):f}" if isinstance(gold, float) else str(number)
    async with open_grader(family, GradingSettings(workers=1, deadline_seconds=60)) as grader:
        assert await grader(problem, f"\\boxed{{{plain}}}") == 1.0
        assert await grader(problem, f"\\boxed{{{plain}1}}") == 0.0


@pytest.mark.parametrize(
    ("gold", "complaint"),
    [
        (True, r"p.jsonl:1: `a` is true; give a text or a number"),
        (None, r"p.jsonl:1: `a` is null; give a text or a number"),
        ([63], r"`a` is a list of 1; give a text or a number"),
        (float("nan"), r"`a` is NaN; give a finite number"),
        ("", r"`a` is empty"),
        ("sixty", r"`a` does not end in one number"),
    ],
)
def test_what_is_no_gold_is_refused_in_words_that_fit(tmp_path: Path, gold: object, complaint: str) -> None:
    path = rows(tmp_path / "p.jsonl", [gold])
    with pytest.raises(ProblemError, match=complaint):
        load_problems(f"{path}?question=q&answer=a")


def test_a_number_where_a_worked_solution_is_expected_is_the_answer_itself(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "?", "answer": 63.0}\n')
    for spec in (str(path), f"{path}?question=question&answer=answer"):
        assert load_problems(spec)[0].answer == "63"


# openai/openai-cookbook#335, huggingface/open-r1#293, #566
GOLDS = [
    "63",
    r"\frac{2}{7}",
    r"\sqrt{7}",
    r"\frac{",
    "}{",
    r"\begin{cases}1",
    "??",
    r"\text{see the picture}",
    "x" * 600,
]
UNREADABLE = {"math": 5, "number": 7}


@pytest.mark.parametrize("family", ["math", "number"])
async def test_golds_that_a_grader_cannot_read_are_told_in_one_line_and_never_give_1(family: str) -> None:
    notices: list[str] = []
    settings = GradingSettings(workers=1, deadline_seconds=60)
    unreadable = await unreadable_golds(family, settings, GOLDS, notices.append)
    assert len(unreadable) == UNREADABLE[family]
    (notice,) = notices
    assert notice.startswith(f"{UNREADABLE[family]} of 9 golds cannot be read by the grader {family}, the first is ")
    assert "\n" not in notice
    async with open_grader(family, settings, unreadable=unreadable) as grader:
        for gold in unreadable:
            for answer in (gold, "7", ""):
                assert await grader(Problem("p", "?", gold), f"\\boxed{{{answer}}}") == 0.0
        assert await grader(Problem("p", "?", "63"), r"\boxed{63}") == 1.0
        assert grader.take_counts()["grader/unreadable_golds"] == UNREADABLE[family]


async def test_a_set_of_readable_golds_is_not_spoken_of() -> None:
    notices: list[str] = []
    assert await unreadable_golds("number", GradingSettings(), ["63", "2 1/4"], notices.append) == {}
    assert notices == []


GRADERS = """
class Words:
    prompt_ending = "Say it."
    def parse_gold(self, text, *, worked):
        return text
    def answer(self, text):
        return text
    def grade(self, problem, text):
        return 1.0

class Readers(Words):
    def reads(self, gold):
        return gold.isalpha() if gold != "raise" else 1 / 0
"""


async def test_a_grader_of_ones_own_may_say_which_golds_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words_graders.py").write_text(GRADERS)
    monkeypatch.syspath_prepend(tmp_path)
    settings = GradingSettings(workers=1, deadline_seconds=60)
    notices: list[str] = []
    assert not await unreadable_golds("words_graders:Words", settings, ["7"], notices.append)
    assert await unreadable_golds("words_graders:Readers", settings, ["seven", "7"], notices.append) == {"7": 1}
    assert notices[0].startswith("1 of 2 golds cannot be read by the grader words_graders:Readers, the first is '7'")
    with pytest.raises(GraderError, match=r"reads failed on 'raise': it raised ZeroDivisionError"):
        await unreadable_golds("words_graders:Readers", settings, ["raise"], notices.append)


def test_a_build_and_an_evaluation_tell_of_golds_before_an_engine_starts(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "model")
    problems = tmp_path / "p.jsonl"
    row = {"problem": "?", "solution": "so", "unique_id": "0", "answer": "63"}
    problems.write_text(json.dumps(row) + "\n" + json.dumps({**row, "unique_id": "1", "answer": r"\sqrt{7}"}) + "\n")
    told: list[str] = []

    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        told.append("engine")
        return ScriptedEngine(lambda prompt, rng, version: [("#### 63", -1.0)], ModelTokenizer(model))

    common = {"problems": str(problems), "grading": {"grader": "number"}}
    build = BuildConfig.model_validate(
        {**common, "output": tmp_path / "t.zarr", "teacher": str(tmp_path / "model"), "search": {"rollouts": 2}}
    )
    build_store(build, told.append, lambda *_: None, start_engine)
    assert open_store(tmp_path / "t.zarr").answers() == ["63", r"\sqrt{7}"]
    model = tmp_path / "model"
    (model / "config.json").write_text('{"model_type": "llama"}')
    evaluating = EvalConfig.model_validate({**common, "model": str(model), "problems": [str(problems)], "samples": 0})
    (result,) = evaluate(evaluating, told.append, lambda *_: None, start_engine)
    line = "1 of 2 golds cannot be read by the grader number, the first is '\\\\sqrt{7}'"
    lines = [notice for notice in told if notice == "engine" or notice.startswith(line)]
    assert [notice == "engine" for notice in lines] == [False, True, False, True]
    assert result.scores[0].grader_unreadable_golds == 1
    assert result.scores[0].greedy.estimate == 0.5


def test_a_training_run_tells_of_golds_at_its_start_and_counts_them_in_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    (tmp_path / "words_graders.py").write_text(GRADERS)
    monkeypatch.syspath_prepend(tmp_path)
    run = new_run(tmp_path, "run", steps=1, **{"grading.grader": "words_graders:Readers", "grading.workers": 1})
    told: list[str] = []

    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        told.append("engine")
        return StudentsEngine(model, 1.0)

    train(run, told.append, lambda step, metrics: None, start_engine)
    golds = next(row for row, line in enumerate(told) if line.startswith("6 of 6 golds cannot be read by the grader "))
    assert golds < told.index("engine")
    (step,) = read_metrics(run.metrics)
    assert (step["grader/unreadable_golds"], step["rollout/reward"]) == (6, 0)
