"""Trees and traces of other projects, in the layouts that their code writes: steps, rewards, visits, values."""

import copy
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from treeopo_storage import EmptyStoreError, MemoryTreeStore, ProblemTree, StoreMeta, TreeDataError
from treeopo_storage.formats import FORMATS, format_named, read_traces, traces_among
from treeopo_storage.formats.base import LeftOut
from treeopo_storage.interchange import trees_from_traces
from treeopo_storage.traces import Trace

from tests.unit.test_store_interchange import TOKENIZE
from treeopo.errors import ConfigError
from treeopo.jobs.import_traces import import_traces

QUESTION = "3 rows of 4 tiles. How many?"

RSTAR = {
    "trace": {
        "0": {
            "user_question": QUESTION,
            "ost_step": {str(n): f"thought {n}." for n in (1, 10, 2, 9)},
            "direct_answer": {"text": "So the answer is 12.", "value": 0.75},
        }
    },
    "rollout_id": 3,
}
RSTAR_ASKED = {
    "trace": {
        "10": {
            "subquestion": "Now we can answer the question: How many?",
            "subanswer": {"text": "The answer is 11.", "value": 1.0},
            "ost_step": {},
        },
        "2": {"subquestion": "How many a row?", "subanswer": {"text": "It is 4.", "value": 1.0}, "ost_step": {}},
        "0": {"user_question": "Given a list of conditions, ...", "ost_step": {}},
    },
    "rollout_id": 4,
}
RSTAR_ANSWER = {"id": 7, "problem": QUESTION, "gold_solution": "3*4", "gold_answer": 12.0, "all_model_completions": {}}

NODES = {
    "0.10": {"text": "stuck", "final_answer": "Unable to solve it", "value": -1, "q_value": -1, "visit_count": 1},
    "0": {"text": "", "extra_info": f"question: {QUESTION}", "value": -100, "q_value": 0.25, "visit_count": 4},
    "0.1": {"text": "one row has 4", "final_answer": "", "value": 0.4, "q_value": 1.0, "visit_count": 2},
    "0.1.1": {"text": "3*4=12", "final_answer": "12", "value": 1.0, "q_value": 1.0, "visit_count": 2},
    "0.9": {"text": "3+4=7", "final_answer": "7", "value": -1.0, "q_value": -1.0, "visit_count": 2},
    "0.11": {"text": "3*4=12 too", "final_answer": "12", "value": 0.5, "q_value": 0.5, "visit_count": 1},
    "0.12": {"text": "never valued", "final_answer": "12", "value": -100, "q_value": 0, "visit_count": 0},
}
RSTAR_MATH = {"question": QUESTION, "answer": "12", "rstar": NODES}
ALPHAMATH = {"question": QUESTION, "answer": "12", "react": NODES}
SFT = {
    "question": QUESTION,
    "gt": "12",
    "extra_ans": "12",
    "final_Q": 1,
    "full": "<|user|>: ...",
    "prm_full": json.dumps([{"content": [{"step": "one row has 4", "Q": 0.5}, {"step": "3*4=12", "Q": 1.0}]}]),
    "visit_counts": [3, 2],
}
REST = {
    "content": QUESTION,
    "policy_samples": [
        {
            "solution": "Step 1: one row has 4\nStep 2: 3*4=12\nso 12",
            "summary": "The final answer is 12",
            "correct": True,
        },
        {"solution": "Step 1: 3+4=7\nStep 2: The final answer is 7", "summary": "ignored", "correct": False},
    ],
    "value_samples": [{"steps": "Step 1: one row has 4", "value": 0.6}],
    "real_answer": "12",
}
SHEPHERD = {
    "input": f"{QUESTION} Step 1: one row has 4. ки\nStep 2: 3*4=12. The answer is: 12 ки",
    "label": f"{QUESTION} Step 1: one row has 4. +\nStep 2: 3*4=12. The answer is: 12 +",
    "task": "GSM8K",
}
SHEPHERD_WRONG = {name: text.replace("3*4=12", "3+4=7").replace("is: 12", "is: 7") for name, text in SHEPHERD.items()}
SHEPHERD_WRONG["label"] = SHEPHERD_WRONG["label"][:-1] + "-"
SHEPHERD_TRL = {
    "prompt": QUESTION,
    "completions": ["Step 1: one row has 4.", "Step 2: 3*4=12. The answer is: 12"],
    "labels": [True, True],
}


def rated(text: str, rating: int | None) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": None}


PRM800K = {
    "is_quality_control_question": False,
    "question": {"problem": QUESTION, "ground_truth_answer": "12", "pre_generated_steps": None},
    "label": {
        "steps": [
            {"completions": [rated("guess\n\n# Answer\n\n7", -1), rated("one row has 4", 1)], "chosen_completion": 1},
            {"completions": [rated("4*4", -1)], "human_completion": {"text": "3*4"}, "chosen_completion": None},
            {
                "completions": [rated("so 12\n\n# Answer\n\n12", 0), rated("or 13\n\n# Answer\n\n13", None)],
                "chosen_completion": 0,
            },
        ],
        "finish_reason": "solution",
    },
}
DPO = {"prompt": QUESTION, "response_0": "a", "response_1": "b", "better_response_id": 1, "answer": "12"}

ROWS = {
    "rstar-math": RSTAR_MATH,
    "alphamath": ALPHAMATH,
    "rest-mcts": REST,
    "math-shepherd": SHEPHERD,
    "prm800k": PRM800K,
}


def file_of(tmp_path: Path, *rows: Any, name: str = "rows.jsonl") -> str:
    (tmp_path / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(tmp_path / name)


def rstar_files(tmp_path: Path, *rows: Any) -> Path:
    (tmp_path / "Question 0007 - Final Solutions.json").write_text(json.dumps(rows))
    (tmp_path / "Question 0007 - Rollout Solutions.json").write_text("[]")
    (tmp_path / "Question 0007 - Answer.json").write_text(json.dumps(RSTAR_ANSWER))
    return tmp_path


def found(path: str, layout: str) -> tuple[list[Trace], list[str]]:
    """The traces in a file, and why the others are none."""
    all_found = [one for _, one in read_traces([path], FORMATS[layout])]
    return (
        [one for one in all_found if isinstance(one, Trace)],
        [one.why for one in all_found if isinstance(one, LeftOut)],
    )


def tree_of(path: str, layout: str) -> ProblemTree:
    """The one tree in a file, as a store takes it."""
    traces = ((where, one) for where, one in traces_among(read_traces([path], FORMATS[layout]), Counter()))
    (tree,) = trees_from_traces(((where, one) for where, one in traces if one.reward is not None), "\n", TOKENIZE)
    memory = MemoryTreeStore(StoreMeta("0123456789abcdef", "imported"))
    with memory.open_writer() as writer:
        writer.append([tree])
    return memory.open_store().problem(0)


# zhentingqi/rStar run_src/do_generate.py
def test_steps_of_rstar_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    (one, asked), left = found(str(rstar_files(tmp_path, RSTAR, RSTAR_ASKED)), "rstar")
    assert one.steps == ("thought 1.", "thought 2.", "thought 9.", "thought 10.", "So the answer is 12.")
    assert (one.id, one.question, one.answer, one.reward) == ("7", QUESTION, "12", None)
    assert asked.question == QUESTION  # and the question in other words is the first step, as action A5 has it
    assert asked.steps == (
        "Given a list of conditions, ...",
        "How many a row? It is 4.",
        "Now we can answer the question: How many? The answer is 11.",
    )
    assert left == []
    for plain in list(tmp_path.iterdir()):
        plain.with_name(f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    assert found(str(tmp_path), "rstar") == ([one, asked], [])


def test_a_rollout_of_rstar_that_ends_nowhere_is_no_trace(tmp_path: Path) -> None:
    row = {"trace": {"0": {"user_question": QUESTION, "ost_step": {"1": "a thought"}}}, "rollout_id": 1}
    assert found(str(rstar_files(tmp_path, row)), "rstar") == ([], ["without an answer at the end"])


def test_solutions_of_rstar_need_their_answer_file(tmp_path: Path) -> None:
    path = rstar_files(tmp_path, RSTAR)
    (path / "Question 0007 - Answer.json").unlink()
    with pytest.raises(TreeDataError, match=r"needs Question 0007 - Answer.json beside it"):
        found(str(path), "rstar")


def test_rewards_of_rstar_are_graded_and_never_its_votes(tmp_path: Path) -> None:
    path = str(rstar_files(tmp_path, RSTAR, RSTAR_ASKED))
    imported = import_traces([path], "\n\n", "rstar", None, None)
    assert [trace.reward for _, trace in imported.traces] == [1.0, 0.0]
    assert imported.settings == {"format": "rstar", "reward": "graded", "grader": "number"}
    with pytest.raises(ConfigError, match="format rstar takes graded; what it records is no verdict"):
        import_traces([path], "\n\n", "rstar", "recorded", None)


# microsoft/rStar (rStar-Math) agents/mcts.py, MARIO-Math-Reasoning/Super_MARIO mcts_math/agents/mcts.py
@pytest.mark.parametrize(("layout", "row"), [("rstar-math", RSTAR_MATH), ("alphamath", ALPHAMATH)])
def test_a_dotted_tree_keeps_its_order_visits_and_values(tmp_path: Path, layout: str, row: dict[str, Any]) -> None:
    traces, left = found(file_of(tmp_path, row), layout)
    assert [trace.steps for trace in traces] == [
        ("one row has 4", "3*4=12"),
        ("3+4=7",),
        ("3*4=12 too",),
        ("never valued",),
    ]
    assert [trace.reward for trace in traces] == [1.0, 0.0, 0.75, None]
    assert left == ["given up by the search"]
    tree = tree_of(file_of(tmp_path, row), layout)
    assert tree.texts == (QUESTION, "one row has 4\n", "3*4=12", "3+4=7", "3*4=12 too")
    # the root was visited 4 times by its own count, and 5 times by its children's: what failed was counted there alone
    assert tree.visits.tolist() == [5, 2, 2, 2, 1]
    assert tree.value_sum.tolist() == pytest.approx([4 * 0.625 + (2 + 0 + 0.75) / 5, 2, 2, 0, 0.75])


def test_what_was_never_valued_is_left_out_or_graded(tmp_path: Path) -> None:
    path = file_of(tmp_path, RSTAR_MATH)
    recorded = import_traces([path], "\n\n", "rstar-math", None, None)
    assert [trace.reward for _, trace in recorded.traces] == [1.0, 0.0, 0.75]
    assert recorded.left_out == "1 given up by the search, 1 without a recorded verdict"
    assert recorded.settings == {"format": "rstar-math", "reward": "recorded"}
    graded = import_traces([path], "\n\n", "rstar-math", "graded", "math")
    assert [trace.reward for _, trace in graded.traces] == [1.0, 0.0, 1.0, 1.0]


def test_the_same_search_twice_is_counted_as_two(tmp_path: Path) -> None:
    once, twice = (tree_of(file_of(tmp_path, *[RSTAR_MATH] * n), "rstar-math") for n in (1, 2))
    assert twice.texts == once.texts
    assert (twice.visits == 2 * once.visits).all()
    np.testing.assert_allclose(twice.value_sum, 2 * once.value_sum)


def test_a_step_beam_without_counts_counts_its_traces(tmp_path: Path) -> None:
    nodes = {
        tag: {name: value for name, value in node.items() if name not in ("visit_count", "q_value")}
        for tag, node in NODES.items()
    }
    path = file_of(tmp_path, ALPHAMATH | {"react": nodes})
    assert {trace.reward for trace in found(path, "alphamath")[0]} == {None}
    imported = import_traces([path], "\n\n", "alphamath", "graded", None)
    (tree,) = trees_from_traces(imported.traces, "\n", TOKENIZE)
    assert tree.visits.tolist() == [4, 1, 1, 1, 1, 1]


def test_rows_that_were_extracted_for_training_keep_their_values(tmp_path: Path) -> None:
    wrong = SFT | {
        "final_Q": -1,
        "extra_ans": "7",
        "prm_full": json.dumps([{"content": [{"step": "one row has 4", "Q": 0.5}, {"step": "3+4=7", "Q": -1.0}]}]),
        "visit_counts": [3, 1],
    }
    tree = tree_of(file_of(tmp_path, SFT, wrong), "rstar-math")
    assert tree.texts == (QUESTION, "one row has 4\n", "3*4=12", "3+4=7")
    assert tree.visits.tolist() == [3, 3, 2, 1]
    assert tree.value_sum[1:].tolist() == [3 * 0.75, 2, 0]
    assert tree.reward[2:].tolist() == [1, 0]


# THUDM/ReST-MCTS MCTS/task.py, utils/extract_both_samples.py
def test_policy_samples_are_traces_and_value_samples_are_none(tmp_path: Path) -> None:
    (right, wrong), left = found(file_of(tmp_path, REST), "rest-mcts")
    assert right.steps == ("Step 1: one row has 4", "Step 2: 3*4=12\nso 12", "The final answer is 12")
    assert wrong.steps == ("Step 1: 3+4=7", "Step 2: The final answer is 7")
    assert (right.reward, wrong.reward, right.answer, left) == (1.0, 0.0, "12", [])
    extracted = {"content": QUESTION, "summary": "Step 1: 4\nStep 2: 12", "label": True, "real_answer": "12"}
    assert found(file_of(tmp_path, extracted), "rest-mcts")[0][0].steps == ("Step 1: 4", "Step 2: 12")
    for values in ({"content": "x", "value_samples": []}, {"prompt_answer": "Problem: x", "label": 0.6}):
        with pytest.raises(TreeDataError, match="value samples are prefixes with a value and end nowhere"):
            found(file_of(tmp_path, values), "rest-mcts")


# huggingface/trl examples/datasets/math_shepherd.py works round the same rows
def test_the_last_label_is_the_reward_and_a_right_solution_the_gold(tmp_path: Path) -> None:
    (wrong, right, listed), left = found(file_of(tmp_path, SHEPHERD_WRONG, SHEPHERD, SHEPHERD_TRL), "math-shepherd")
    assert right.steps == ("Step 1: one row has 4.", "Step 2: 3*4=12. The answer is: 12")
    assert (right.question, right.answer, right.reward) == (QUESTION, "12", 1.0)
    assert (wrong.question, wrong.answer, wrong.reward) == (QUESTION, "12", 0.0)
    assert listed == right
    assert left == []


@pytest.mark.parametrize(
    ("text", "label", "why"),
    [
        (SHEPHERD["input"], SHEPHERD["label"][1:], "with marks that do not fit their labels"),
        (SHEPHERD["input"].replace("ки", ""), SHEPHERD["label"], "with marks that do not fit their labels"),
        (SHEPHERD["input"] + " and on", SHEPHERD["label"] + " and on", "with marks that do not fit their labels"),
        ("Is it? Step 1: yes ки", "Is it? Step 1: yes +", "without an answer at the end"),
        (SHEPHERD_WRONG["input"], SHEPHERD_WRONG["label"], "whose question has no right solution"),
    ],
)
def test_a_row_of_math_shepherd_that_cannot_be_used_is_counted(tmp_path: Path, text: str, label: str, why: str) -> None:
    ((), (left,)) = found(file_of(tmp_path, {"input": text, "label": label}), "math-shepherd")
    assert left.startswith(why)


def test_a_mark_inside_the_question_is_dropped(tmp_path: Path) -> None:
    inside = {
        "input": SHEPHERD["input"].replace("3 rows", "3 ки rows"),
        "label": SHEPHERD["label"].replace("3 rows", "3 + rows"),
    }
    ((trace,), _) = found(file_of(tmp_path, inside), "math-shepherd")
    assert trace.question == QUESTION.replace("3 rows", "3  rows")
    assert len(trace.steps) == 2


# openai/prm800k README.md
def test_branches_of_prm800k_that_state_an_answer_are_traces(tmp_path: Path) -> None:
    traces, left = found(file_of(tmp_path, PRM800K), "prm800k")
    assert [(trace.steps[-1][:6], len(trace.steps), trace.reward, trace.final) for trace in traces] == [
        ("guess\n", 1, 0.0, "7"),
        ("so 12\n", 3, 1.0, "12"),  # rated 0, but its labeler finished in "solution"
        ("or 13\n", 3, None, "13"),
    ]
    assert traces[1].steps[:2] == ("one row has 4", "3*4")  # the labeler's own step is on the path
    assert left == []
    graded = import_traces([file_of(tmp_path, PRM800K)], "\n\n", "prm800k", "graded", "math")
    assert [trace.reward for _, trace in graded.traces] == [0.0, 1.0, 0.0]


def test_a_pre_generated_solution_with_an_error_is_wrong_and_control_rows_are_left_out(tmp_path: Path) -> None:
    steps = [{"completions": [rated("one row has 5", -1)], "chosen_completion": None}]
    row = {
        "question": PRM800K["question"] | {"pre_generated_steps": ["one row has 5", "so\n\n# Answer\n\n15"]},  # type: ignore[operator]
        "label": {"steps": steps, "finish_reason": "found_error"},
    }
    (trace,), left = found(file_of(tmp_path, row, PRM800K | {"is_quality_control_question": True}), "prm800k")
    assert (trace.steps, trace.reward) == (("one row has 5", "so\n\n# Answer\n\n15"), 0.0)
    assert left == ["shown to every labeler, to check the labels"]


@pytest.mark.parametrize("kind", ["jsonl", "array", "pretty"])
@pytest.mark.parametrize("name", list(ROWS))
def test_a_foreign_file_as_it_is_names_its_format(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "rows.json"
    row: Any = ROWS[name] if kind == "jsonl" else [ROWS[name]]
    path.write_text(json.dumps(row, indent=4 if kind == "pretty" else None))
    with pytest.raises(TreeDataError, match=f"rows.json(:1|, row 1): .*; this looks like .*: give --format {name}$"):
        list(read_traces([str(path)]))
    other = "prm800k" if name != "prm800k" else "alphamath"
    with pytest.raises(TreeDataError, match=f"give --format {name}$"):
        list(read_traces([str(path)], FORMATS[other]))


def test_rstar_as_it_is_names_its_format(tmp_path: Path) -> None:
    path = rstar_files(tmp_path, RSTAR) / "Question 0007 - Final Solutions.json"
    with pytest.raises(TreeDataError, match=r"'question' is missing; this looks like rStar: give --format rstar$"):
        list(read_traces([str(path)]))


def test_pairs_of_responses_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TreeDataError, match="format mcts-dpo cannot be imported: MCTS-DPO keeps pairs of responses"):
        format_named("mcts-dpo")
    with pytest.raises(TreeDataError, match="MCTS-DPO keeps pairs of responses"):
        list(read_traces([file_of(tmp_path, DPO)]))
    with pytest.raises(TreeDataError, match="no format 'rstar2'; give one of traces, rstar, rstar-math"):
        format_named("rstar2")


def test_a_file_without_one_trace_says_why(tmp_path: Path) -> None:
    path = file_of(tmp_path, SHEPHERD_WRONG)
    with pytest.raises(EmptyStoreError, match=r"rows.jsonl: no traces in it; left out: 1 whose question has no right"):
        import_traces([path], "\n\n", "math-shepherd", None, None)


def test_treeopo_s_own_traces_can_be_graded_too(tmp_path: Path) -> None:
    rows = [{"question": QUESTION, "answer": 12, "steps": ["3*4", f"#### {n}"], "reward": 0.5} for n in (12, 13)]
    path = file_of(tmp_path, *rows)
    assert [trace.reward for _, trace in import_traces([path], "\n\n", "traces", None, None).traces] == [0.5, 0.5]
    graded = import_traces([path], "\n\n", "traces", "graded", "number-strict")
    assert [trace.reward for _, trace in graded.traces] == [1.0, 0.0]
    without = file_of(tmp_path, {name: value for name, value in rows[0].items() if name != "reward"})
    assert import_traces([without], "\n\n", "traces", "graded", None).traces[0][1].reward == 1.0
    with pytest.raises(TreeDataError, match="'reward' is missing or null; give a number, or --reward graded"):
        import_traces([without], "\n\n", "traces", None, None)
    with pytest.raises(ConfigError, match="--reward votes: format traces takes recorded or graded"):
        import_traces([path], "\n\n", "traces", "votes", None)
    with pytest.raises(TreeDataError, match="its gold answer 'many' does not end in one number; give another --grader"):
        import_traces([file_of(tmp_path, rows[0] | {"answer": "many"})], "\n\n", "traces", "graded", None)


def test_a_count_that_is_none_is_refused(tmp_path: Path) -> None:
    for count in (-1, 2.5, 2**31):
        nodes = NODES | {"0": NODES["0"] | {"visit_count": count}}
        with pytest.raises(TreeDataError, match=r"'visit_count' is .*; give a whole number from 0 to 2\^31 - 1"):
            found(file_of(tmp_path, RSTAR_MATH | {"rstar": nodes}), "rstar-math")


JUNK: tuple[Any, ...] = (None, 5, -3.5, "x", "", [], {}, True, [None], [[]], {"a": 1}, {"0": None}, float("nan"))


def damaged(row: Any) -> Iterator[Any]:
    """A row with each of its values replaced by junk, one at a time, and with each left out."""

    def places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            yield (*path, key)
            yield from places(value[key], (*path, key))

    yield from JUNK
    for path in places(row, ()):
        for junk in (*JUNK, ...):
            broken = copy.deepcopy(row)
            inside = broken
            for key in path[:-1]:
                inside = inside[key]
            if junk is ...:
                del inside[path[-1]]
            else:
                inside[path[-1]] = junk
            yield broken


@pytest.mark.parametrize("name", [*ROWS, "rstar", "traces", "sft", "trl"])
def test_a_damaged_row_is_a_trace_left_out_or_one_line_and_never_a_traceback(tmp_path: Path, name: str) -> None:
    others = {
        "rstar": RSTAR_ASKED,
        "traces": {"question": "q", "answer": "1", "steps": ["a", "b"], "reward": 1, "id": 3, "prompt": "p"},
        "sft": SFT,
        "trl": SHEPHERD_TRL,
    }
    layout = FORMATS[{"sft": "rstar-math", "trl": "math-shepherd"}.get(name, name)]
    refused = 0
    for number, row in enumerate(damaged(ROWS.get(name) or others[name])):
        path = rstar_files(tmp_path, row) if name == "rstar" else file_of(tmp_path, row)
        try:
            for _, one in read_traces([str(path)], layout):
                assert isinstance(one, LeftOut) or all(step for step in one.steps), number
        except TreeDataError:
            refused += 1
    assert refused > 10


def test_a_root_asks_as_a_searched_one_does_or_by_a_template(tmp_path: Path) -> None:
    path = file_of(tmp_path, REST)
    (tmp_path / "t.txt").write_bytes("<user>{question}\r\n<model>".encode("utf-8-sig"))
    plain = import_traces([path], "\n\n", "rest-mcts")
    given = import_traces([path], "\n\n", "rest-mcts", template=tmp_path / "t.txt")
    assert {trace.prompt for _, trace in plain.traces} == {f"Question: {QUESTION}\n\nAnswer:\n\n"}
    assert {trace.prompt for _, trace in given.traces} == {f"<user>{QUESTION}\n<model>"}
    (tmp_path / "t.txt").write_text("no question")
    with pytest.raises(ConfigError, match=r"t.txt: name \{question\} once"):
        import_traces([path], "\n\n", "rest-mcts", template=tmp_path / "t.txt")
    own = {"question": QUESTION, "answer": "12", "steps": ["3*4"], "reward": 1, "prompt": "asked"}
    rows = file_of(tmp_path, own, {name: value for name, value in own.items() if name != "prompt"} | {"id": 2})
    assert [trace.prompt for _, trace in import_traces([rows], "\n\n").traces] == ["asked", QUESTION]
