"""A training batch as one .npz file, so that a step can be taken again elsewhere."""

import json
import os
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from treeopo.errors import RunError
from treeopo.records import TrainBatch, TrainSequence

_ADDED = ["question_length", "prefix_is_solved"]  # older files have neither
_COLUMNS = [field.name for field in fields(TrainSequence) if field.name not in ("extras", *_ADDED)]


def write_batch(path: Path, batch: TrainBatch) -> Path:
    """Write `batch` to `path`, whole or not at all: array "3/advantages" is of sequence 3, "3/extras/x" its extra x."""
    arrays: dict[str, Any] = {
        "number": batch.number,
        "size": len(batch.sequences),
        "metrics": json.dumps(batch.metrics),
    }
    for row, sequence in enumerate(batch.sequences):
        known = [name for name in (*_COLUMNS, *_ADDED) if getattr(sequence, name) is not None]
        arrays |= {f"{row}/{name}": getattr(sequence, name) for name in known}
        arrays |= {f"{row}/extras/{name}": extra for name, extra in sequence.extras.items()}
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(partial, path)
    return path


def read_batch(path: Path) -> TrainBatch:
    """What `write_batch` wrote.

    Raises:
        RunError: the file is not there, or is not a batch.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        sequences = tuple(_sequence(arrays, f"{row}/") for row in range(int(arrays["size"])))
        return TrainBatch(int(arrays["number"]), sequences, json.loads(str(arrays["metrics"])))
    except (OSError, KeyError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: not a training batch ({error}); give a file that write_batch wrote") from None


def _sequence(arrays: dict[str, Any], row: str) -> TrainSequence:
    columns = {name: arrays[row + name] for name in _COLUMNS}
    columns["prefix_length"] = int(columns["prefix_length"])
    columns |= {name: arrays[row + name].item() for name in _ADDED if row + name in arrays}
    prefix = f"{row}extras/"
    extras = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return TrainSequence(**columns, extras=extras)
