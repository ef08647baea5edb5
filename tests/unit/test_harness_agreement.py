"""GSM8K's prompts and verdicts are those of EleutherAI's lm-evaluation-harness (its tasks gsm8k and gsm8k_cot, version
3) where its protocol or its graders are asked for; where treeopo's own grader differs, it does so as documented.
"""

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.filters import build_filter_ensemble

from tests.hard_knocks.families import FAMILIES
from treeopo.config import EvalConfig, load_config
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError, ProblemError
from treeopo.jobs.evaluate import evaluate
from treeopo.problems.graders import load_grader
from treeopo.problems.graders.number import grade
from treeopo.problems.prompting import PromptSettings
from treeopo.problems.protocols import PROTOCOLS
from treeopo.problems.spec import load_problem_set
from treeopo.records import Completion, FinishReason, Problem, Request
from treeopo.run.questions import make_questions

TASKS = Path(lm_eval.__file__).parent / "tasks" / "gsm8k"
GRADERS = {
    "gsm8k-strict-match": ("gsm8k.yaml", "strict-match"),
    "gsm8k-cot-strict-match": ("gsm8k-cot.yaml", "strict-match"),
    "gsm8k-flexible-extract": ("gsm8k.yaml", "flexible-extract"),
}
OURS, STRICT, COT, FLEXIBLE = "number", *GRADERS

# Completions of our own, and which of the graders calls them right.
RECORDED = [
    ("18", "She sells 9 eggs.\n\n9 * 2 = 18\n\n#### 18", {OURS, STRICT, FLEXIBLE}),
    ("18", "9 * 2 = <<9*2=18>>18\n#### 18.\n", {OURS, STRICT, FLEXIBLE}),
    ("18", "9 * 2 = 18", {FLEXIBLE}),
    ("18", "9 * 2 = 18. The answer is 18.", {OURS, COT, FLEXIBLE}),
    ("18", "9 * 2 = 18. The answer is 18", {OURS, FLEXIBLE}),  # theirs takes the 1, and the 8 for what ends it
    ("18", "#### 19", set()),
    ("18", "#### $18", {OURS, FLEXIBLE}),  # the strict pattern has no currency sign
    ("18", "The answer is $18.00.", {OURS}),  # 18.00 is another text than 18
    ("18", "#### 18.00", {OURS}),
    ("18", "#### 36/2", {OURS}),
    ("18", "#### 18/2", {STRICT}),  # and so is 9 for 18: theirs read the digits before the stroke
    ("9", "#### 18/2", {OURS}),
    ("1200", "#### 1,200", {OURS, STRICT, FLEXIBLE}),
    ("1200", "#### 1 200", {OURS}),
    ("1,200", "The answer is 1200.", {OURS, COT, FLEXIBLE}),
    ("-4", "#### -4", {OURS, STRICT, FLEXIBLE}),
    ("5", "#### five", set()),
    ("5", "The answer is 5 apples.", {OURS, COT, FLEXIBLE}),
    ("5", "the answer is 5.", {OURS, FLEXIBLE}),
    ("5", "\\boxed{5}", {OURS, FLEXIBLE}),
    ("0.5", "#### 0.5", {OURS, STRICT, FLEXIBLE}),
    ("70000", "<<80000+50000=130000>>130000\n#### 70,000", {OURS, STRICT, FLEXIBLE}),
    ("7", "#### 7\n\nThat is for 2 weeks.", {OURS, STRICT}),  # the last number is the weeks
    ("2", "#### 7\n\nThat is for 2 weeks.", {FLEXIBLE}),
    ("7", "#### 7\n\nNo:\n\n#### 8", {STRICT}),  # the first one counts for them, the last one for us
    ("8", "#### 7\n\nNo:\n\n#### 8", {OURS, FLEXIBLE}),
    ("7", "#### 7 or 8", {STRICT}),
    ("7", "The answer is 7. Q: and 5?", {OURS, COT}),
    ("10", "It takes 10-", {FLEXIBLE}),
    ("3", "", set()),
]


@cache
def task(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((TASKS / name).read_text())
    return found


def theirs(grader: str, gold: str, completion: str) -> bool:
    """The harness's own filter and metric, as its task file configures them."""
    file, name = GRADERS[grader]
    (config,) = [row for row in task(file)["filter_list"] if row["name"] == name]
    components = [(step["function"], {k: v for k, v in step.items() if k != "function"}) for step in config["filter"]]
    document = {"answer": f"...\n#### {gold}"}
    instance = Instance("generate_until", document, ("prompt", {}), 0, ("gsm8k", 0, 1), resps=[completion])
    build_filter_ensemble(name, components).apply([instance])
    (metric,) = task(file)["metric_list"]
    options = {name: metric[name] for name in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    answer = instance.filtered_resps[name]
    return bool(
        exact_match_hf_evaluate(predictions=[answer], references=[document["answer"]], **options)["exact_match"]
    )


@pytest.mark.parametrize(("gold", "completion", "right"), RECORDED)
def test_recorded_completions_have_the_verdicts_of_the_harness_and_our_own_differ_as_documented(
    gold: str, completion: str, right: set[str]
) -> None:
    problem = Problem("p", "?", gold)
    assert {name for name in GRADERS if theirs(name, gold, completion)} == right - {OURS}
    assert {name for name in GRADERS if load_grader(name).grade(problem, completion)} == right - {OURS}
    assert grade(problem, completion) == (OURS in right)


PIECES = (
    "#### ",
    "####",
    "The answer is ",
    "the answer is ",
    "\n",
    " ",
    ".",
    ",",
    "$",
    "-",
    "0",
    "1",
    "18",
    "eggs",
    "é",
    "/",
)


@given(
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    st.sampled_from(["1", "18", "-1", "1,018", "0.1", "18.0"]),
)
def test_whatever_is_said_the_harness_s_graders_are_the_harness(completion: str, gold: str) -> None:
    for name in GRADERS:
        assert load_grader(name).grade(Problem("p", "?", gold), completion) == theirs(name, gold, completion), name


def test_equal_answers_read_equal_and_none_reads_empty() -> None:
    answers = {name: load_grader(name).answer("It is $1,200.\n#### 1,200. The answer is 1200.") for name in GRADERS}
    assert set(answers.values()) == {"1200"}
    assert {load_grader(name).answer("none") for name in GRADERS} == {""}


ROWS = [
    {
        "question": f"Ann has {n} figs and eats one. How many?",
        "answer": f"{n} - 1 = <<{n}-1={n - 1}>>{n - 1}\nSo.\n#### {n - 1}",
    }
    for n in range(2, 14)
]


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """Training and test set, as files."""
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in ROWS[4:]))
    test.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:4]))
    return train, test


def contexts(name: str, shots: int, sets: tuple[Path, Path], cache: Path, chat: ModelTokenizer | None) -> list[str]:
    """The prompts that the harness makes of our rows, by its own task file."""
    config = {key: value for key, value in task(name).items() if key not in ("tag", "dataset_name", "metadata")}
    files = {"train": str(sets[0]), "test": str(sets[1])}
    config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": files, "cache_dir": str(cache)}}
    logging.disable(logging.WARNING)
    found = ConfigurableTask(config=config)
    found.set_fewshot_seed(seed=1234)
    template = None
    if chat is not None:
        render = chat.hf.apply_chat_template
        template = lambda turns, add_generation_prompt: render(turns, tokenize=False, add_generation_prompt=True)  # noqa: E731
    asked = [
        found.fewshot_context(
            doc,
            shots,
            apply_chat_template=chat is not None,
            fewshot_as_multiturn=chat is not None,
            chat_template=template,
        )
        for doc in found.test_docs()
    ]
    logging.disable(logging.NOTSET)
    return asked


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize(
    ("protocol", "file", "shots"),
    [
        ("lm-eval-gsm8k", "gsm8k.yaml", 5),
        ("lm-eval-gsm8k", "gsm8k.yaml", 0),
        ("lm-eval-gsm8k-cot", "gsm8k-cot.yaml", 8),
        ("lm-eval-gsm8k-cot-zeroshot", "gsm8k-cot-zeroshot.yaml", 0),
    ],
)
def test_a_protocol_s_prompts_are_those_of_the_harness(
    tmp_path: Path, sets: tuple[Path, Path], protocol: str, file: str, shots: int, style: Any
) -> None:
    tokenizer = FAMILIES[4].saved(tmp_path / "model")
    examples = str(sets[0])
    if protocol == "lm-eval-gsm8k-cot":
        fixed = [{**row, "answer": "1"} for row in task(file)["fewshot_config"]["samples"]]
        (tmp_path / "cot.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fixed))
        examples = f"{tmp_path / 'cot.jsonl'}?question=question&answer=answer&solution=target"
    settings = PromptSettings(style=style, shots=shots, examples=examples if shots else None)
    problems = load_problem_set(str(sets[1]))
    questions = make_questions(tokenizer, settings, problems, protocol=PROTOCOLS[protocol])
    chat = tokenizer if style == "chat" else None
    wanted = contexts(file, shots, sets, tmp_path / "cache", chat)
    assert [tokenizer.reads(question.prompt_ids) for question in questions] == wanted
    assert questions[0].prompt_ids == tokenizer.hf.encode(wanted[0])
    assert list(questions[0].stop) == task(file)["generation_kwargs"]["until"]


def test_a_question_is_never_among_its_own_examples(tmp_path: Path, sets: tuple[Path, Path]) -> None:
    tokenizer = FAMILIES[3].saved(tmp_path / "model")
    settings = PromptSettings(shots=5, examples=str(sets[0]))
    problems = load_problem_set(str(sets[0]))
    questions = make_questions(tokenizer, settings, problems, protocol=PROTOCOLS["lm-eval-gsm8k"])
    for question in questions:
        assert tokenizer.decode(list(question.prompt_ids)).count(question.problem.question) == 1
    with pytest.raises(ProblemError, match="too few to take the 8 shots"):
        make_questions(
            tokenizer, PromptSettings(shots=8, examples=str(sets[0])), problems, protocol=PROTOCOLS["lm-eval-gsm8k"]
        )


def test_a_protocol_gives_the_settings_that_are_not_given() -> None:
    def config(**values: Any) -> EvalConfig:
        return EvalConfig.model_validate(values)

    found = config(protocol="lm-eval-gsm8k")
    assert (found.prompt.shots, found.prompt.examples, found.max_new_tokens) == (5, "gsm8k:train", 256)
    assert (found.grading.grader, found.grade_cut) == ("gsm8k-strict-match", True)
    found = config(protocol="lm-eval-gsm8k", prompt={"shots": 0}, grading={"grader": "number"}, max_new_tokens=9)
    assert (found.prompt.examples, found.grading.grader, found.max_new_tokens) == (None, "number", 9)
    assert config(protocol="lm-eval-gsm8k-cot", prompt={"examples": "cot.jsonl"}).prompt.shots == 8
    assert not config().grade_cut
    for values, complaint in (
        ({"protocol": "lm-eval-gsm8k-cot"}, "give its 8 worked examples as prompt.examples"),
        ({"protocol": "lm-eval-gsm8k", "prompt": {"template": "t.txt"}}, "has its own text; leave one of them out"),
        ({"protocol": "lm-eval"}, "'lm-eval-gsm8k', 'lm-eval-gsm8k-cot' or 'lm-eval-gsm8k-cot-zeroshot'"),
    ):
        with pytest.raises((ConfigError, ValueError), match=complaint):
            config(**values)


def says(text: str, limit: int | None = None) -> Any:
    """Starts an engine whose every answer is `text`; `limit`: it has run out of so many tokens."""

    class Saying(ScriptedEngine):
        async def generate(self, request: Request) -> Completion:
            asked.append(request)
            reason = FinishReason.STOP if limit is None else FinishReason.LENGTH
            nothing = np.zeros(1, np.float32)
            return Completion(np.zeros(1, np.int32), nothing, np.zeros(1, np.int32), text, reason)

    async def start(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return Saying(lambda *_: [])

    asked.clear()
    return start


asked: list[Request] = []
"""What the newest of these engines was asked."""


@pytest.mark.parametrize("limit", [None, 256])
def test_an_evaluation_under_a_protocol_asks_ends_and_grades_as_the_harness(
    tmp_path: Path, sets: tuple[Path, Path], limit: int | None
) -> None:
    tokenizer = FAMILIES[3].saved(tmp_path / "model")
    given = {"protocol": "lm-eval-gsm8k", "problems": (str(sets[1]),), "prompt.examples": str(sets[0])}
    flags = given | {"model": str(tmp_path / "model"), "output": tmp_path / "scores"}
    config = load_config(EvalConfig, file=None, flags=flags)
    told: list[str] = []
    (found,) = evaluate(config, told.append, lambda progress: None, says("So 1.\n#### 1,0\n\n#### 3", limit))
    assert found.scores[0].greedy.estimate == 0  # 1,0 is 10, the first to them
    (found,) = evaluate(
        config.model_copy(update={"output": tmp_path / "right"}),
        told.append,
        lambda progress: None,
        says("#### 3", limit),
    )
    assert found.scores[0].greedy.estimate == 1 / 4
    assert {(request.max_tokens, request.temperature, request.stop) for request in asked} == {
        (256, 0.0, ("Question:", "</s>", "<|im_end|>"))
    }
    wanted = contexts("gsm8k.yaml", 5, sets, tmp_path / "cache", None)
    assert [tokenizer.reads([int(token) for token in request.token_ids]) for request in asked] == wanted
    kept = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert (kept["protocol"], kept["grade_cut"]) == ("lm-eval-gsm8k", True)


def test_an_evaluation_without_a_protocol_is_kept_as_before(tmp_path: Path, sets: tuple[Path, Path]) -> None:
    FAMILIES[3].saved(tmp_path / "model")
    flags = {"problems": (str(sets[1]),), "model": str(tmp_path / "model"), "output": tmp_path / "scores"}
    evaluate(load_config(EvalConfig, file=None, flags=flags), lambda _: None, lambda *_: None, says("#### 3"))
    assert not {"protocol", "grade_cut"} & set(json.loads((tmp_path / "scores" / "evaluation.json").read_text()))
