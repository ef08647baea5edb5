"""Problem sets of a user's own: a function that yields rows.

    def rows(split):                      # or without `split`, where there is but one
        yield {"question": "1 + 1?", "answer": "2"}         # and, if it has them, "solution" and "id"

A row is a mapping with these keys, or a `treeopo.records.Problem`. The function is called anew for each use and should
yield the same rows in the same order.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from treeopo.errors import ProblemError, described
from treeopo.plugins import load_object
from treeopo.problems.rows import Row


@dataclass(frozen=True, slots=True)
class RowFunction:
    """`call` makes the rows; `name` is module:function, with the split where the function takes one."""

    name: str
    call: Callable[[], Iterable[Any]]


def open_function(name: str, splits: Sequence[str], default_split: str) -> RowFunction:
    """The function called `module:function`, to be asked for one split if it has a parameter of that name.

    splits: what the spec names after the function, at most one.

    Raises:
        ConfigError: there is no such function.
        ProblemError: it takes no split and one is named.
    """
    function = load_object(name, "problem set")
    if not callable(function):
        raise ProblemError(
            f"problem set {name}: is no function but {type(function).__name__}; name one that yields rows"
        )
    takes_split = "split" in inspect.signature(function).parameters
    if len(splits) > 1 or (splits and not takes_split):
        raise ProblemError(
            f"problem set {name}: {splits[-1]!r} does not belong there; give {name}[:split]"
            if takes_split
            else f"problem set {name}: takes no split {splits[0]!r}; leave it out"
        )
    if not takes_split:
        return RowFunction(name, function)
    split = splits[0] if splits else default_split
    return RowFunction(f"{name}:{split}", lambda: function(split=split))


def function_rows(function: RowFunction) -> Iterator[Row]:
    """Its rows as they are yielded, each with the words that name it in a complaint.

    Raises:
        ProblemError: the function raised, or what it returned cannot be iterated over.
    """
    number = 0
    try:
        for number, row in enumerate(function.call(), start=1):
            yield f"{function.name}, row {number}", row
    except ProblemError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise ProblemError(f"problem set {function.name}: failed after {number} rows ({described(error)})") from error
