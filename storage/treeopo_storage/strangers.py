"""What lies where a tree store was expected, and what to do about it."""

from pathlib import Path
from typing import Final

from treeopo_storage.schema import COLUMNS

_ARCHIVES: Final = {
    b"PK\x03\x04": "a zip archive; unpack it, or read it as zip://NAME.zarr::{path} with the name it has inside",
    b"\x1f\x8b": "a gzip archive; unpack it (tar -xf) and give the directory",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it (tar -xf) and give the directory",
    b"BZh": "a bzip2 archive; unpack it (tar -xf) and give the directory",
    b"\xfd7zXZ": "an xz archive; unpack it (tar -xf) and give the directory",
}
_GIVE: Final = "give the path that a search or an import wrote"


def described(path: Path) -> str:
    """The complaint about a local path without a store's zarr.json, in one line."""
    if not path.exists():
        return f"there is no tree store at {path}; {_GIVE}"
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(300)
        for magic, what in _ARCHIVES.items():
            if head.startswith(magic):
                return f"{path} is not a tree store but {what.format(path=path)}"
        if head[257:262] == b"ustar":
            return f"{path} is not a tree store but a tar archive; unpack it (tar -xf) and give the directory"
        return f"{path} is not a tree store but a file, and a store is a directory; {_GIVE}"
    inside = sorted(child for child in path.iterdir() if (child / "zarr.json").is_file())
    if {child.name for child in inside} & {name.partition("/")[0] for name in COLUMNS}:
        return f"{path} is part of a tree store: its zarr.json is missing; copy the store again"
    if len(inside) == 1:
        return f"{path} is not a tree store but holds {inside[0]}; give that"
    return f"{path} is not a tree store{'' if any(path.iterdir()) else ' but an empty directory'}; {_GIVE}"
