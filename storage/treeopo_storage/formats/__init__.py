"""Files of finished solutions, as treeopo and others write them, read as traces."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from treeopo_storage.errors import StoreAccessError, TreeDataError
from treeopo_storage.formats.base import Format, Found, LeftOut, Reward, RowError
from treeopo_storage.formats.math_shepherd import MATH_SHEPHERD
from treeopo_storage.formats.plain import TRACES
from treeopo_storage.formats.prm800k import PRM800K
from treeopo_storage.formats.rest_mcts import REST_MCTS
from treeopo_storage.formats.rstar import RSTAR
from treeopo_storage.formats.trees import ALPHAMATH, RSTAR_MATH
from treeopo_storage.shards import find_files
from treeopo_storage.traces import Trace

__all__ = [
    "FORMATS",
    "TRACES",
    "Format",
    "Found",
    "LeftOut",
    "Reward",
    "format_named",
    "read_traces",
    "traces_among",
]

FORMATS = {layout.name: layout for layout in (TRACES, RSTAR, RSTAR_MATH, ALPHAMATH, REST_MCTS, MATH_SHEPHERD, PRM800K)}

_MCTS_DPO = (
    "MCTS-DPO keeps pairs of responses, the better one named, where the text forks; neither needs to end or has a "
    "verdict of its own, so they are no traces"
)


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        TreeDataError: there is none, or it holds no finished traces; the message says why.
    """
    if name == "mcts-dpo":
        raise TreeDataError(f"format mcts-dpo cannot be imported: {_MCTS_DPO}")
    if name not in FORMATS:
        raise TreeDataError(f"no format {name!r}; give one of {', '.join(FORMATS)}")
    return FORMATS[name]


def read_traces(names: Sequence[str], layout: Format = TRACES) -> Iterator[Found]:
    """What the files, directories and patterns named hold, in the order they are named.

    Raises:
        TreeDataError: a row is not what the format says; it is named, and the format that it looks like.
        FileFormatError: a file cannot be read as rows; it is named.
        StoreAccessError: a name stands for no file, or one cannot be read.
    """
    paths = []
    for name in names:
        found = find_files(name, layout.files)
        if not found:
            raise StoreAccessError(f"{name}: cannot be read: No such file or directory")
        paths += found
    try:
        yield from layout.read(paths)
    except RowError as error:
        raise TreeDataError(f"{error}{_hint(error.row, layout)}") from None


def traces_among(found: Iterable[Found], left_out: Counter[str]) -> Iterator[tuple[str, Trace]]:
    """The traces among `found`; the solutions that are none are counted in `left_out`."""
    for where, trace in found:
        if isinstance(trace, LeftOut):
            left_out[trace.why] += 1
        else:
            yield where, trace


def _hint(row: Any, layout: Format) -> str:
    """What a row looks like, if that is another format than the one it was read as."""
    if not isinstance(row, Mapping):
        return ""
    if {"response_0", "response_1"} <= set(row):
        return f"; {_MCTS_DPO}"
    likely = next((other for other in FORMATS.values() if other.fits(row)), layout)
    return "" if likely is layout else f"; this looks like {likely.title}: give --format {likely.name}"
