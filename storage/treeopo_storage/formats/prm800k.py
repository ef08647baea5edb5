"""PRM800K (Lightman et al., 2023, arXiv:2305.20050; openai/prm800k, `data/*.jsonl`): solutions with a rating a step.

A row is a branching tree: several completions of each step, one of them chosen. Those that state an answer
(`# Answer`) are ends. The chosen path is worth 1 where its labeler finished in "solution"; another end is worth 1 or 0
as it was rated; a pre-generated solution in which an error was found is worth 0.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from treeopo_storage.cells import ABSENT, cell, is_number, shown, text_or_number
from treeopo_storage.formats.base import Format, LeftOut, by_row, field
from treeopo_storage.formats.plain import steps_of
from treeopo_storage.traces import Trace

_ANSWER = "# Answer"
_RATINGS = {1: 1.0, -1: 0.0}

Path = tuple[str, ...]


def _traces(row: Any, where: str) -> Iterator[Trace | LeftOut]:
    if cell(row, "is_quality_control_question") is True or cell(row, "is_initial_screening_question") is True:
        yield LeftOut("shown to every labeler, to check the labels")
        return
    question, answer = field(row, "question.problem"), field(row, "question.ground_truth_answer", text_or_number)
    ends = _ends(row)
    for steps, reward in ends.items():
        final = steps[-1].rpartition(_ANSWER)[2].strip() or None
        yield Trace(question, question, answer, question, steps, reward, final=final)
    if not ends:
        yield LeftOut("without an answer at the end")


def _ends(row: Any) -> dict[Path, float | None]:
    """Every path of a row that ends in an answer, and what it is worth; None where its rating does not say."""
    ends: dict[Path, float | None] = {}
    so_far: Path = ()
    finished = cell(row, "label.finish_reason")
    for step in _list(row, "label.steps"):
        completions = _list(step, "completions")
        for completion in completions:
            text = field(completion, "text")
            if _ANSWER in text:
                rating = cell(completion, "rating")
                ends[(*so_far, text)] = _RATINGS.get(rating) if is_number(rating) else None
        chosen = _chosen(step, completions)
        if chosen is None:
            break
        so_far = (*so_far, chosen)
    else:
        if finished == "solution" and so_far:
            ends[so_far] = 1.0
    if cell(row, "question.pre_generated_steps") not in (ABSENT, None):
        whole = field(row, "question.pre_generated_steps", steps_of)
        if whole and _ANSWER in whole[-1]:
            ends.setdefault(whole, 0.0 if finished == "found_error" else None)
    return ends


def _chosen(step: Any, completions: list[Any]) -> str | None:
    """The text that the next step follows; None where the labels end."""
    index = cell(step, "chosen_completion")
    if isinstance(index, int) and not isinstance(index, bool):
        if not 0 <= index < len(completions):
            raise ValueError(f"'chosen_completion' is {index}, of {len(completions)} completions")
        return str(field(completions[index], "text"))
    human = cell(step, "human_completion")
    if human is ABSENT or human is None:
        return None
    return str(field(human, "text")) if isinstance(human, Mapping) else str(field(step, "human_completion"))


def _list(row: Any, column: str) -> list[Any]:
    value = field(row, column, lambda value: value or [])
    if not isinstance(value, list):
        raise ValueError(f"{column!r} is {shown(value)}; give a list")
    return value


def _fits(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("question"), Mapping) and isinstance(row.get("label"), Mapping)


PRM800K = Format("prm800k", "PRM800K", ("recorded", "graded"), _fits, by_row(_traces))
