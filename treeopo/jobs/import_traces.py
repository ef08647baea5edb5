"""`treeopo store import`: traces of files, with the rewards that the files record or a grader gives."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from treeopo_storage.errors import EmptyStoreError, StoreError, TreeDataError
from treeopo_storage.formats import TRACES, Format, Reward, format_named, read_traces, traces_among
from treeopo_storage.text_files import read_text
from treeopo_storage.traces import Trace

from treeopo import tasks
from treeopo.errors import ConfigError
from treeopo.problems.graders import OpenGrader, load_grader, open_grader
from treeopo.problems.problem_set import PromptTemplate
from treeopo.problems.settings import DEFAULT_GRADER, GRADER_KEY, GradingSettings
from treeopo.records import Problem

Named = tuple[str, Trace]
"""The words that name a trace in a complaint, and the trace."""

_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Imported:
    """Traces, each with a reward; what a store should keep of where they come from; the solutions that are left out."""

    traces: list[Named]
    settings: dict[str, str]
    left_out: str


def import_traces(
    names: Sequence[str],
    separator: str,
    layout: str = TRACES.name,
    reward: str | None = None,
    grader: str | None = None,
    template: Path | None = None,
) -> Imported:
    """The traces of files, directories and patterns, read as the format called `layout`.

    template: a file whose text asks a question, for rows without a prompt. None: the plain template of problem sets,
    but in treeopo's own layout the question alone.

    Raises:
        TreeDataError, FileFormatError, StoreAccessError: as `treeopo_storage.formats.read_traces`.
        EmptyStoreError: there is not one trace.
        ConfigError: the format has no such reward, there is no such grader, or the template cannot be used.
        GraderError: the grader cannot be started, or fails again and again.
    """
    form = format_named(layout)
    ask = _asking(form, template)
    source = _source(form, reward)
    if grader is not None:
        load_grader(grader)
    tally: Counter[str] = Counter()
    found = traces_among(read_traces(names, form), tally)
    match source:
        case "recorded":
            traces = list(_recorded(found, form, tally))
        case "graded":
            traces = _graded(list(found), separator, grader)
        case _:
            assert_never(source)
    left_out = ", ".join(f"{count} {why}" for why, count in sorted(tally.items()))
    if not traces:
        raise EmptyStoreError(f"{', '.join(names)}: no traces in it" + (f"; left out: {left_out}" if left_out else ""))
    graded_by = grader or (DEFAULT_GRADER if source == "graded" else None)
    settings = {"format": form.name, "reward": source} | ({GRADER_KEY: graded_by} if graded_by else {})
    return Imported([(where, _asked(trace, ask)) for where, trace in traces], settings, left_out)


def _asking(form: Format, template: Path | None) -> str:
    """The text with {question} in it that asks for a solution."""
    if template is None:
        return "{question}" if form is TRACES else PromptTemplate().text
    try:
        text = read_text(template.expanduser())
    except StoreError as error:
        raise ConfigError(f"--template {error}") from None
    if text.count("{question}") != 1:
        raise ConfigError(f"--template {template}: name {{question}} once")
    return text


def _asked(trace: Trace, ask: str) -> Trace:
    is_given = trace.prompt != trace.question
    return trace if is_given else replace(trace, prompt=ask.replace("{question}", trace.question))


def _source(form: Format, asked: str | None) -> Reward:
    for reward in form.rewards:
        if asked in (None, reward):
            return reward
    raise ConfigError(
        f"--reward {asked}: format {form.name} takes {' or '.join(form.rewards)}"
        + ("; what it records is no verdict" if asked == "recorded" else "")
    )


def _recorded(traces: Iterable[Named], form: Format, tally: Counter[str]) -> Iterator[Named]:
    """The traces with a recorded reward. In treeopo's own layout each must have one; in others they are left out.

    Raises:
        TreeDataError: a trace of treeopo's own layout has none; it is named.
    """
    for where, trace in traces:
        if trace.reward is not None:
            yield where, trace
        elif form is TRACES:
            raise TreeDataError(f"{where}: 'reward' is missing or null; give a number, or --reward graded")
        else:
            tally["without a recorded verdict"] += 1


def _graded(traces: Sequence[Named], separator: str, grader: str | None) -> list[Named]:
    """The traces with a grader's rewards: of their whole text, and of the final answer where a format states it apart.

    Raises:
        ConfigError: there is no such grader.
        TreeDataError: an answer is no gold answer of the grader's; its trace is named.
        GraderError: the grader cannot be started, or fails again and again.
    """
    name = grader or DEFAULT_GRADER
    golds = {where: _gold(where, trace, name) for where, trace in traces}
    return tasks.run(_grade(traces, golds, separator, name))


async def _grade(traces: Sequence[Named], golds: dict[str, str], separator: str, name: str) -> list[Named]:
    async with open_grader(name, GradingSettings()) as grade:
        done: list[Named] = []
        for start in range(0, len(traces), _AT_ONCE):
            some = traces[start : start + _AT_ONCE]
            rewards = await asyncio.gather(*(_reward(grade, trace, golds[where], separator) for where, trace in some))
            done += [
                (where, replace(trace, reward=reward)) for (where, trace), reward in zip(some, rewards, strict=True)
            ]
        return done


async def _reward(grade: OpenGrader, trace: Trace, gold: str, separator: str) -> float:
    stated = [f"\\boxed{{{trace.final}}}"] if trace.final else []
    return await grade(Problem(trace.id, trace.question, gold), separator.join([*trace.steps, *stated]))


def _gold(where: str, trace: Trace, grader: str) -> str:
    try:
        return load_grader(grader).parse_gold(trace.answer, worked=False)
    except ConfigError:
        raise
    except ValueError as error:
        raise TreeDataError(f"{where}: its gold answer {trace.answer!r:.60} {error}; give another --grader") from None
