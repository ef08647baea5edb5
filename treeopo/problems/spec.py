"""Names of problem sets, as a person types them.

spec        = (generated | published | file | function) ["[" first ":" end "]"]   rows counted from 0, the end left out
generated   = "staged-arithmetic" [":" difficulty] [":" split]
difficulty  = "easy" (2-5 steps, the default) | "sparse" (5-6 steps)
published   = "gsm8k" | "gsm-symbolic" [":" main|p1|p2] | "math" [":" subject] | "math500", then [":" split]
file        = files [ "?question=COLUMN&answer=COLUMN" ["&solution=COLUMN"] ["&id=COLUMN"] ["&grader=GRADER"] ]
files       = path | directory | pattern
function    = module ":" name [":" split] [ "?grader=GRADER" ]
GRADER      = a name of treeopo.problems.settings.GRADERS | module ":" name

A file is JSON, CSV, TSV or Parquet (`treeopo_storage.rows`), a directory one of shards, a pattern has `*` or `[0-9]` in
it. Without column names they have those of GSM8K, GSM-Symbolic or MATH; `outer.inner` names one inside an object. A
function is of your own and yields rows (`treeopo.problems.functions`). What a name means is decided in the order above,
but that a file of that very name comes before a function.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from urllib.parse import parse_qsl

from treeopo_storage.errors import StoreError
from treeopo_storage.shards import find_files

from treeopo.errors import ConfigError, ProblemError
from treeopo.plugins import is_path
from treeopo.problems import staged_arithmetic
from treeopo.problems.functions import function_rows, open_function
from treeopo.problems.graders import load_grader
from treeopo.problems.layouts import Layout, read_problems
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.published import PUBLISHED
from treeopo.problems.rows import Row, file_rows, hub_rows
from treeopo.problems.staged_arithmetic import Difficulty, Split
from treeopo.records import Problem

_GRAMMAR = f"{staged_arithmetic.NAME}[:{'|'.join(Difficulty)}][:{'|'.join(Split)}]"
_SLICE = re.compile(r"(?P<name>.*)\[(?P<first>[0-9]*):(?P<end>[0-9]*)\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Slice:
    """Rows first to end (exclusive; None: all), and the name they are asked of."""

    name: str
    first: int = 0
    end: int | None = None


def load_problems(spec: str, limit: int | None = None, *, verbatim: bool = False) -> list[Problem]:
    """The problems of `load_problem_set`."""
    return list(load_problem_set(spec, limit, verbatim=verbatim).problems)


def load_problem_set(
    spec: str, limit: int | None = None, grader: str | None = None, split: str = "train", *, verbatim: bool = False
) -> ProblemSet:
    """The problem set named by `spec` (grammar above), at most `limit` problems of it, always in the same order.

    It is graded by its own grader or the one given, by name. `split` is for a spec that names none; a set that was
    published without it gives the one it has. The set's own `spec` names the split. verbatim: worked solutions as the
    rows have them, GSM8K's with calculator annotations and no blank lines.

    Raises:
        ProblemError: an unknown name, a missing file, an unreachable hub, or a bad row (named by file and line).
        ConfigError: the grader is unknown, or lacks something.
    """
    if grader is not None:
        load_grader(grader)
    if limit is not None and limit < 1:
        raise ProblemError(f"limit {limit}: ask for at least one problem, or leave the limit out for all")
    asked = _sliced(spec)
    rows = _Slice(asked.name, asked.first, _earlier(asked.end, None if limit is None else asked.first + limit))
    name, *parts = rows.name.split(":")
    if name == staged_arithmetic.NAME:
        found = _staged_arithmetic(rows, parts, split, grader)
    elif name in PUBLISHED:
        found = _published(rows, name, parts, split, grader, verbatim)
    elif _is_function(rows.name):
        found = _function(rows, split, grader)
    else:
        found = _file(rows, grader, verbatim)
    if not found.problems:
        raise ProblemError(f"{spec}: no problems in it; check the file, or the slice")
    part = spec.removeprefix(asked.name)
    return ProblemSet(found.spec + part, found.problems, grader=found.grader)


def difficulty_of(spec: str) -> Difficulty:
    """The difficulty of staged-arithmetic that a spec names; easy for any other problem set."""
    return Difficulty.SPARSE if Difficulty.SPARSE in _sliced(spec).name.split(":") else Difficulty.EASY


def absolute_spec(spec: str, directory: Path) -> str:
    """`spec` with a file's path in it as seen from `directory`; other problem sets are the same everywhere."""
    if not is_of_file(spec):
        return spec
    return os.path.join(directory, os.path.expanduser(spec))


def is_of_file(spec: str) -> bool:
    """Whether `spec` names a file, and not a set that is the same everywhere."""
    rest = _sliced(spec).name
    name = rest.partition(":")[0]
    return name != staged_arithmetic.NAME and name not in PUBLISHED and not _is_function(rest)


def is_there(spec: str) -> bool:
    """Whether the file that `spec` names is there."""
    name = _sliced(spec).name
    try:
        return bool(find_files(name) or find_files(name.partition("?")[0]))
    except StoreError:
        return True  # but not to be read: that is said when it is


def _sliced(spec: str) -> _Slice:
    found = _SLICE.fullmatch(spec)
    if found is None or Path(spec).expanduser().is_file():
        return _Slice(spec)
    return _Slice(found["name"], int(found["first"] or 0), int(found["end"]) if found["end"] else None)


def _earlier(end: int | None, other: int | None) -> int | None:
    return min((value for value in (end, other) if value is not None), default=None)


def _staged_arithmetic(rows: _Slice, parts: list[str], default_split: str, grader: str | None) -> ProblemSet:
    difficulty, split = Difficulty.EASY, Split(default_split)
    remaining = list(parts)
    if remaining and remaining[0] in list(Difficulty):
        difficulty = Difficulty(remaining.pop(0))
    if remaining and remaining[0] in list(Split):
        split = Split(remaining.pop(0))
    if remaining:
        raise ProblemError(f"problem set {rows.name!r}: {remaining[0]!r} does not belong there; give {_GRAMMAR}")
    end = staged_arithmetic.SIZES[split] if rows.end is None else rows.end
    problems = staged_arithmetic.staged_arithmetic(difficulty, split, end)[rows.first :]
    spec = f"{staged_arithmetic.NAME}:{difficulty}:{split}"
    return ProblemSet(spec, tuple(problems), grader=grader or "number-strict")


def _published(
    rows: _Slice, name: str, parts: list[str], default_split: str, grader: str | None, verbatim: bool
) -> ProblemSet:
    source = PUBLISHED[name]
    variant, split = next(iter(source.variants)), default_split if default_split in source.splits else source.splits[0]
    remaining = list(parts)
    if remaining and remaining[0] in source.variants:
        variant = remaining.pop(0)
    if remaining and remaining[0] in source.splits:
        split = remaining.pop(0)
    if remaining:
        raise ProblemError(
            f"problem set {rows.name!r}: {remaining[0]!r} does not belong there; give {name}{source.grammar}"
        )
    found = chain.from_iterable(hub_rows(source.repository, config, split) for config in source.variants[variant])
    prefix = "-".join(filter(None, (name, variant)))
    used, problems = read_problems(islice(found, rows.first, rows.end), prefix, source.layout, grader, verbatim)
    return ProblemSet(":".join(filter(None, (name, variant, split))), tuple(problems), grader=used)


def _is_function(name: str) -> bool:
    """Whether a name is `module:function` or `module:function:split`, and no file's."""
    path = name.partition("?")[0]
    is_file = any(Path(one).expanduser().is_file() for one in (name, path))
    return not is_file and is_path(":".join(path.split(":")[:2]))


def _function(rows: _Slice, default_split: str, grader: str | None) -> ProblemSet:
    path, _, query = rows.name.partition("?")
    module, function, *splits = path.split(":")
    try:
        source = open_function(f"{module}:{function}", splits, default_split)
    except ConfigError as error:
        raise ProblemError(
            f"{error}; the sets that ship are {', '.join([staged_arithmetic.NAME, *PUBLISHED])}"
        ) from None
    asked = dict(parse_qsl(query, keep_blank_values=True))
    own = _known_grader(rows.name, asked.pop("grader", None))
    if asked:
        raise ProblemError(f"{rows.name}: {next(iter(asked))!r} does not belong there; a function takes ?grader=NAME")
    layout = Layout("question", "answer", own, solution="solution", id=("id",), needs_id=False)
    found = islice(function_rows(source), rows.first, rows.end)
    used, problems = read_problems(found, f"{module}-{function}", layout, grader)
    return ProblemSet(source.name + (f"?{query}" if query else ""), tuple(problems), grader=used)


def _file(rows: _Slice, grader: str | None, verbatim: bool) -> ProblemSet:
    name, _, query = rows.name.partition("?")
    if Path(rows.name).expanduser().is_file():
        name, query = rows.name, ""
    try:
        paths = find_files(name)
    except StoreError as error:
        raise ProblemError(str(error)) from None
    if not paths:
        known = ", ".join([_GRAMMAR, *(known + source.grammar for known, source in PUBLISHED.items())])
        raise ProblemError(
            f"no problem set or file {name!r}; give {known}, the path of a file or directory of problems (JSON, CSV or "
            "Parquet), or module:function for rows of your own"
        )
    found: Iterator[Row] = islice(file_rows(paths), rows.first, rows.end)
    columns = _columns(rows.name, query) if query else None
    used, problems = read_problems(found, Path(name).stem, columns, grader, verbatim)
    return ProblemSet(rows.name, tuple(problems), grader=used)


def _columns(spec: str, query: str) -> Layout:
    columns = dict(parse_qsl(query, keep_blank_values=True))
    grader = columns.pop("grader", None)
    known = {"question", "answer", "solution", "id"}
    if not {"question", "answer"} <= set(columns) <= known or "" in columns.values():
        raise ProblemError(f"{spec}: name columns as ?question=NAME&answer=NAME[&solution=NAME][&id=NAME]")
    id_column = columns.get("id")
    return Layout(
        columns["question"],
        columns["answer"],
        _known_grader(spec, grader),
        solution=columns.get("solution"),
        id=(id_column,) if id_column else (),
    )


def _known_grader(spec: str, name: str | None) -> str | None:
    try:
        if name is not None:
            load_grader(name)
    except ConfigError as error:
        raise ProblemError(f"{spec}: {error}") from None
    return name
