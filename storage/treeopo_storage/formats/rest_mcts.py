"""ReST-MCTS* (Zhang et al., 2024, arXiv:2406.03816; THUDM/ReST-MCTS: `MCTS/task.py`, `utils/extract_both_samples.py`).

Its policy samples are finished solutions with a verdict. Its value samples are prefixes with a value, and end nowhere.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from treeopo_storage.cells import ABSENT, cell, finite_float, shown, text_or_number
from treeopo_storage.formats.base import Format, LeftOut, by_row, field
from treeopo_storage.traces import Trace

_STEP = re.compile(r"\n(?=(?:Step|步骤) ?\d)")
_VERDICTS = ("correct", "label", "accurate")  # of a search, of its extracted samples, of chains of thought


def _traces(row: Any, where: str) -> Iterator[Trace | LeftOut]:
    samples = cell(row, "policy_samples")
    if samples is ABSENT and not _has_verdict(row):
        raise ValueError(
            "has no policy samples; value samples are prefixes with a value and end nowhere, so they are no traces"
            if any(cell(row, name) is not ABSENT for name in ("value_samples", "prompt_answer"))
            else "'policy_samples' is missing"
        )
    samples = [row] if samples is ABSENT else samples
    if not isinstance(samples, list):
        raise ValueError(f"'policy_samples' is {shown(samples)}; give a list of objects")
    question, answer = field(row, "content"), field(row, "real_answer", text_or_number)
    for sample in samples:
        verdict = next((name for name in _VERDICTS if cell(sample, name) is not ABSENT), _VERDICTS[0])
        steps = _steps(sample)
        yield (
            Trace(question, question, answer, question, steps, field(sample, verdict, finite_float))
            if steps
            else (LeftOut("without a text"))
        )


def _steps(sample: Any) -> tuple[str, ...]:
    """The steps of a sample, and its summary where the solution does not state the answer itself."""
    solution, summary = (
        "" if cell(sample, name) in (ABSENT, None, "") else field(sample, name) for name in ("solution", "summary")
    )
    if not solution:
        solution, summary = summary, ""  # an extracted sample has both in one
    steps = [step.strip() for step in _STEP.split(solution)]
    if "final answer is" not in solution:
        steps.append(summary.strip())
    return tuple(step for step in steps if step)


def _has_verdict(row: Any) -> bool:
    return cell(row, "summary") is not ABSENT and any(cell(row, name) is not ABSENT for name in _VERDICTS)


def _fits(row: Mapping[str, Any]) -> bool:
    return (
        "policy_samples" in row
        or "value_samples" in row
        or "prompt_answer" in row
        or ({"content", "real_answer", "summary"} <= set(row))
    )


REST_MCTS = Format("rest-mcts", "ReST-MCTS*", ("recorded", "graded"), _fits, by_row(_traces))
