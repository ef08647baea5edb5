"""Files of finished solutions, as treeopo and others write them, read as traces."""

from collections.abc import Iterable, Iterator, Sequence

from treeopo_storage.errors import StoreAccessError, TreeDataError
from treeopo_storage.formats.base import Format, Found, LeftOut, Reward
from treeopo_storage.formats.plain import TRACES
from treeopo_storage.shards import find_files
from treeopo_storage.traces import Trace

__all__ = ["TRACES", "Format", "Found", "LeftOut", "Reward", "read_traces", "recorded"]


def read_traces(names: Sequence[str], layout: Format = TRACES) -> Iterator[Found]:
    """What the files, directories and patterns named hold, in the order they are named.

    Raises:
        TreeDataError: a row is not what the format says; it is named.
        FileFormatError: a file cannot be read as rows; it is named.
        StoreAccessError: a name stands for no file, or one cannot be read.
    """
    paths = []
    for name in names:
        found = find_files(name, layout.files)
        if not found:
            raise StoreAccessError(f"{name}: cannot be read: No such file or directory")
        paths += found
    yield from layout.read(paths)


def recorded(found: Iterable[Found]) -> Iterator[tuple[str, Trace]]:
    """The traces among `found`, all of which must have a reward, or `TreeDataError` names the first without."""
    for where, trace in found:
        if isinstance(trace, LeftOut):
            continue
        if trace.reward is None:
            raise TreeDataError(f"{where}: 'reward' is missing or null; give a number")
        yield where, trace
