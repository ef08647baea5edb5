"""Text files as people have them: byte order marks, CRLF, UTF-16, compressed. What is no text is refused by name.

Lines end at "\\n" alone. `str.splitlines` also breaks at nine other characters (U+2028, U+0085, form feed, ...), which
JSON allows bare inside a string and which models write now and then.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from treeopo_storage.errors import FileFormatError, MissingDependencyError, StoreAccessError

_HEAD_BYTES = 512
# What `json.dumps` leaves bare: line separators of other readers, and halves of characters, which UTF-8 cannot hold.
_BARE = re.compile("[\x85\u2028\u2029\ud800-\udfff]")
# The longer mark first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = (
    (b"PK\x03\x04", "is a zip archive (or a spreadsheet); unpack it and give the file inside: unzip -d DIR FILE"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it and give the file inside: 7z x FILE"),
    (b"PAR1", "is Parquet, not text"),
    (b"ARROW1", "is an Arrow file, not text; write it as Parquet (datasets: to_parquet)"),
    (b"SQLite format 3\0", "is an SQLite database, not text; write the table as JSON Lines or CSV"),
    (b"version https://git-lfs.github.com/spec/", "is a git-lfs pointer, the data are not here; run git lfs pull"),
    (b"/annex/objects/", "is a git-annex pointer, the data are not here; run git annex get FILE"),
    (b"<!doctype html", "is a web page; download the raw file instead"),
    (b"<html", "is a web page; download the raw file instead"),
)


def read_text(path: Path) -> str:
    """The whole text, decompressed, without a byte order mark, its lines ended by "\\n".

    Raises:
        FileFormatError: it is no text; the message says what it is and what to do.
        StoreAccessError: it cannot be read.
        MissingDependencyError: it is compressed by what cannot be undone here.
    """
    text = "\n".join(read_lines(path))
    return text.replace("\r", "\n") if "\n" not in text else text  # of a classic Mac


def read_lines(path: Path) -> Iterator[str]:
    """The lines of `read_text`, as they are asked for; the last one is empty where the text ends in "\\n".

    Raises what `read_text` does, and names the line that cannot be decoded.
    """
    with open_bytes(path) as stream:
        yield from _decoded(path, stream)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file of ours that were written to their end ("\\n"); none where there is no file.

    A last line torn by a crash, in the middle of a character perhaps, is left out.

    Raises:
        FileFormatError: a whole line is no UTF-8.
        OSError: the file cannot be read.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    lines = whole.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [text for number, line in enumerate(lines, 1) if (text := _utf8(line, f"{path}:{number}").rstrip("\r"))]


def finished_rows(path: Path) -> Iterator[tuple[int, bytes, Any]]:
    """Of a JSON Lines file of ours: number, line and value of each line that was written to its end ("\\n") and holds
    anything; the value is None where it cannot be read. Nothing where there is no file.
    """
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        if line.strip():
            try:
                yield number, line, json.loads(line)
            except ValueError:
                yield number, line, None


def json_line(value: Any) -> str:
    """`value` as one line of JSON, "\\n" included, that is one line for readers who split at U+2028 or U+0085 too."""
    line = _BARE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
    return line + "\n"


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, decompressed; its first ones may be peeked at.

    Raises what `read_text` does, on reading too.
    """
    try:
        with path.open("rb") as raw, _decompressed(path, raw) as content:
            yield content
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise FileFormatError(f"{path}: is cut short or damaged ({error}); copy or download it again") from error
    except OSError as error:
        if error.errno is None:  # what bz2 and pyarrow raise for bytes they cannot undo
            raise FileFormatError(f"{path}: is cut short or damaged ({error}); copy or download it again") from error
        raise StoreAccessError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decompressed(path: Path, raw: io.BufferedReader) -> io.BufferedReader:
    head = raw.peek(_HEAD_BYTES)
    if head.startswith(b"\x1f\x8b"):
        return cast(io.BufferedReader, gzip.open(raw))
    if head.startswith(b"BZh"):
        return cast(io.BufferedReader, bz2.open(raw))
    if head.startswith(b"\xfd7zXZ\0"):
        return cast(io.BufferedReader, lzma.open(raw))
    return _zstd(path, raw) if head.startswith(b"\x28\xb5\x2f\xfd") else raw


def _zstd(path: Path, raw: io.BufferedReader) -> io.BufferedReader:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
    except ImportError:
        raise MissingDependencyError(
            f"{path}: reading zstd needs pyarrow; pip install pyarrow, or unpack it: unzstd {path}"
        ) from None
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))


def refuse_no_text(path: Path, head: bytes) -> None:
    """`FileFormatError` if a file that begins with `head` is known for something that is no text."""
    start = head.lstrip()[:64].lower() if head[:1] in b"< \t\r\n" else head
    for mark, what in _NO_TEXT:
        if start.startswith(mark):
            raise FileFormatError(f"{path}: {what.replace('FILE', str(path))}")
    if head[257:262] == b"ustar":
        raise FileFormatError(f"{path}: is a tar archive; unpack it and give the file inside: tar -xf {path}")


def _decoded(path: Path, stream: io.BufferedReader) -> Iterator[str]:
    head = stream.peek(_HEAD_BYTES)
    refuse_no_text(path, head)
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    if encoding in ("utf-8", "utf-8-sig"):
        yield from _utf8_lines(path, stream)
        return
    ended = True
    try:
        with io.TextIOWrapper(stream, encoding=encoding, newline="\n") as lines:
            for line in lines:
                ended = line.endswith("\n")
                yield _without_end(line)
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: is not the {encoding.upper()} text it begins as ({error.reason})") from error
    if ended:
        yield ""


def _utf8_lines(path: Path, stream: io.BufferedReader) -> Iterator[str]:
    ended = True
    for number, line in enumerate(stream, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        ended = line.endswith(b"\n")
        yield _without_end(_utf8(line, f"{path}:{number}"))
    if ended:
        yield ""


def _without_end(line: str) -> str:
    return line[:-2] if line.endswith("\r\n") else line.removesuffix("\n")


def _utf8(line: bytes, where: str) -> str:
    if b"\0" in line:
        raise FileFormatError(
            f"{where}: holds NUL bytes, as UTF-16 without its byte order mark does; "
            "if it is that, convert it: iconv -f UTF-16LE -t UTF-8"
        )
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{where}: is not UTF-8 text ({error.reason} at byte {error.start}); convert it: iconv -f LATIN1 -t UTF-8"
        ) from error
