"""The root attributes of a Zarr tree store: its settings and its commit record, under one checksum."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from treeopo_storage.errors import DamagedStoreError, NotAStoreError, SchemaVersionError, TreeDataError
from treeopo_storage.schema import SCHEMA_VERSION, Counts, StoreMeta

FORMAT: Final = "treeopo tree store"
RESTORE: Final = "restore it from a copy"


@dataclass(frozen=True, slots=True)
class Commit:
    """What is committed: the rows of each axis, and of each column the CRC-32 of all its committed bytes.

    CRC-32 rolls: each commit continues the previous value over the bytes it adds, so one number covers every commit.
    """

    counts: Counts
    crc32: Mapping[str, int]


def root_attributes(meta: StoreMeta, commit: Commit, where: Path | str) -> dict[str, Any]:
    """Attributes that `parse_root` reads; `TreeDataError` if the settings are not JSON."""
    attributes = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(meta)}
    attributes["commit"] = {"rows": dict(commit.counts), "crc32": dict(commit.crc32)}
    try:
        # Through JSON and back, so that what is checksummed is what will be read (tuples become lists).
        attributes = json.loads(json.dumps(attributes, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TreeDataError(f"{where}: the store's settings cannot be written as JSON: {error}") from error
    return {**attributes, "crc32": _checksum(attributes)}


def parse_root(data: bytes, where: str) -> tuple[StoreMeta, Commit]:
    """Settings and newest commit from the bytes of the group's zarr.json.

    Raises `NotAStoreError`, `SchemaVersionError` or `DamagedStoreError`.
    """
    try:
        root = json.loads(data)
    except ValueError as error:
        raise DamagedStoreError(f"{where}: zarr.json is not JSON; {RESTORE}") from error
    attributes = root.get("attributes") if isinstance(root, dict) else None
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise NotAStoreError(f"{where} is Zarr, but not a tree store; give the path that a search or an import wrote")
    if (version := attributes.get("schema_version")) != SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{where} has schema version {version}, this treeopo reads {SCHEMA_VERSION}; use the treeopo that wrote it"
        )
    if attributes.pop("crc32", None) != _checksum(attributes):
        raise DamagedStoreError(f"{where}: the attributes in zarr.json fail their checksum; {RESTORE}")
    settings = {name: attributes[name] for name in StoreMeta.__slots__}
    return StoreMeta(**settings), Commit(attributes["commit"]["rows"], attributes["commit"]["crc32"])


def _checksum(attributes: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(attributes, sort_keys=True).encode())
