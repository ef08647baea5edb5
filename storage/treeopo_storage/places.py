"""Where a tree store is: a local path or a URL, told apart here and nowhere else."""

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from treeopo_storage.errors import NotAStoreError

Place = Path | str
"""A local path, or as text the URL of anything else; `parse_place` makes it of what a person typed."""

_URL: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<slashes>/+)(?P<rest>.*)", re.DOTALL)
_LOCAL: Final = ("file", "local")  # fsspec's names of the local file system


def parse_place(place: Path | str) -> Place:
    """A path for a local place, `~` expanded, also for `file:` URLs, whose `%20` and the like are unquoted (RFC 8089);
    other URLs as they are.

    Raises:
        NotAStoreError: what pathlib makes of a URL (`s3:/b/t`), a file on another host, or nobody's home directory.
    """
    text = str(place)
    if "::" in text and "://" in text:  # fsspec's chains, simplecache::s3://b/t
        return text
    if found := _URL.fullmatch(text):
        scheme, slashes, rest = found["scheme"].lower(), found["slashes"], found["rest"]
        if scheme in _LOCAL:
            return _of_file_url(text, slashes, rest)
        if len(slashes) > 1:
            return text
        raise NotAStoreError(
            f"{text}: is that the URL {found['scheme']}://{rest}, as pathlib writes it? Give a URL as text; a local "
            "path of this name must be absolute"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise NotAStoreError(f"{text}: there is no such home directory; give an absolute path") from None


def _of_file_url(url: str, slashes: str, rest: str) -> Path:
    if len(slashes) == 2:
        host, slash, rest = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise NotAStoreError(
                f"{url}: a file URL names an absolute path and no other host, as in file:///data/t.zarr"
            )
    return Path("/" + unquote(rest))
