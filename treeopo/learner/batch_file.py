"""A training batch as one .npz file, so that a step can be taken again elsewhere."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from treeopo.errors import RunError
from treeopo.records import TrainBatch, TrainSequence


def write_batch(path: Path, batch: TrainBatch) -> Path:
    """Write `batch` to `path`, whole or not at all: each field of its sequences end to end, and where each ends.

    A field that is None in a sequence is -1 long there.
    """
    columns: dict[str, Any] = {"number": batch.number, "metrics": json.dumps(batch.metrics)}
    for name in _FIELDS:
        values = [getattr(row, name) for row in batch.sequences]
        parts = [np.atleast_1d(value) for value in values if value is not None]
        columns[name] = np.concatenate(parts) if parts else np.zeros(0)
        columns[f"{name}_length"] = [-1 if value is None else np.size(value) for value in values]
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **columns)
    os.replace(partial, path)
    return path


def read_batch(path: Path) -> TrainBatch:
    """What `write_batch` wrote.

    Raises:
        RunError: the file is not there, or is not a batch.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: _split(file[name], file[f"{name}_length"]) for name in _FIELDS}
            number, metrics = int(file["number"]), json.loads(str(file["metrics"]))
    except (OSError, KeyError, ValueError) as error:
        raise RunError(f"{path}: not a training batch ({error}); give a file that write_batch wrote") from None
    columns["prefix_length"] = [int(length[0]) for length in columns["prefix_length"]]
    rows = zip(*columns.values(), strict=True)
    return TrainBatch(number, tuple(TrainSequence(**dict(zip(columns, row, strict=True))) for row in rows), metrics)


_FIELDS = [field.name for field in fields(TrainSequence)]


def _split(values: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> list[Any]:
    parts = np.split(values, np.cumsum(lengths.clip(min=0))[:-1])
    return [None if length < 0 else part for part, length in zip(parts, lengths, strict=True)]
