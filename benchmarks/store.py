"""The tree store against what else could hold the same rows: `python benchmarks/store.py --help`.

Sides: Hugging Face datasets (Arrow, memory-mapped, one row per prefix), raw zarr (the same arrays, read and written
with zarr alone), JSON Lines + zstd (one line per problem). Each measurement runs in a process of its own, so that peak
memory is its own; the two sides alternate and the best of each counts. Needs `pip install datasets`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from treeopo_storage import Action, ProblemTree, StoreMeta
from treeopo_storage.schema import COLUMNS
from treeopo_storage.streaming import stream_problems

META = StoreMeta("0123456789abcdef", "benchmark")
NODES, STEP_TOKENS, PROMPT_TOKENS, VOCABULARY = 40, 60, 90, 50_000
APPEND_PROBLEMS = 1024  # problems of one append
SMALL_APPENDS, SMALL_PROBLEMS = 50, 8  # a search commits a few problems at a time
JSON_PROBLEMS = 2500  # in the JSON Lines file, which is slow to write; sizes are compared per problem
GROUPS, GROUP_SIZE, ROUNDS = 5000, 8, 3


def synthetic_trees(prefixes: int, *, step_tokens: int = STEP_TOKENS) -> Iterator[list[ProblemTree]]:
    """Batches of trees of 40 nodes, depth 5 at most; token frequencies and their texts are Zipf's."""
    rng = np.random.default_rng(0)
    parent = np.array([-1, *((p - 1) // 3 for p in range(1, NODES))], np.int32)
    depth, visits = np.zeros(NODES, np.int32), np.ones(NODES, np.int32)
    for p in range(1, NODES):
        depth[p] = depth[parent[p]] + 1
    for p in range(NODES - 1, 0, -1):
        visits[parent[p]] += visits[p]
    terminal = ~np.isin(np.arange(NODES), parent)
    frequency = 1 / np.arange(1, VOCABULARY + 1)
    cumulative = np.cumsum(frequency / frequency.sum())
    words = np.array([f" {word:x}" for word in range(VOCABULARY)])
    offsets = np.concatenate([[0], np.cumsum([PROMPT_TOKENS] + [step_tokens] * (NODES - 1))])
    for start in range(0, prefixes // NODES, APPEND_PROBLEMS):
        batch = []
        for problem in range(start, min(start + APPEND_PROBLEMS, prefixes // NODES)):
            ids = np.searchsorted(cumulative, rng.random(int(offsets[-1]))).clip(max=VOCABULARY - 1)
            pieces = words[ids]
            logprobs = -rng.exponential(0.5, len(ids)).astype(np.float32)
            logprobs[:PROMPT_TOKENS] = np.nan
            texts = tuple("".join(pieces[lo:hi]) for lo, hi in pairwise(offsets))
            batch.append(
                ProblemTree(
                    f"problem-{problem}", texts[0], str(problem), parent, depth, visits,
                    visits * rng.random(NODES), terminal,
                    np.where(terminal, rng.integers(0, 2, NODES), np.nan).astype(np.float32),
                    np.where(parent < 0, Action.ROOT, Action.STEP).astype(np.int8),
                    ids.astype(np.int32), offsets, logprobs, texts,
                )
            )  # fmt: skip
        yield batch


def prepare(work: Path, prefixes: int) -> None:
    """One store, one Arrow data set and one JSON Lines file of the same trees."""
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]
    from treeopo_storage.zarr_store import create_store, open_writer

    create_store(work / "trees.zarr", META)
    batches: list[pa.RecordBatch] = []
    schema = pa.schema([("problem", pa.int32()), ("node", pa.int32()), ("input_ids", pa.list_(pa.int32()))])
    with (
        open_writer(work / "trees.zarr") as writer,
        pa.CompressedOutputStream(str(work / "trees.jsonl.zst"), "zstd") as lines,
        pa.OSFile(str(work / "rows.arrow"), "wb") as rows,
        pa.ipc.new_stream(rows, schema) as arrow,
    ):
        for batch in synthetic_trees(prefixes):
            first = writer.problem_count
            writer.append(batch)
            for i, tree in enumerate(batch):
                if first + i < JSON_PROBLEMS:
                    lines.write(json.dumps(_as_json(tree)).encode() + b"\n")
                prefix_ids = [tree.prefix_tokens(node) for node in range(tree.node_count)]
                lengths = np.cumsum([0, *map(len, prefix_ids)]).astype(np.int32)
                ids = pa.ListArray.from_arrays(pa.array(lengths), pa.array(np.concatenate(prefix_ids)))
                numbers = pa.array(np.full(tree.node_count, first + i, np.int32))
                nodes = pa.array(np.arange(tree.node_count, dtype=np.int32))
                batches.append(pa.RecordBatch.from_arrays([numbers, nodes, ids], schema=schema))
            # As datasets itself writes: record batches of a thousand rows or so.
            for table in [
                pa.Table.from_batches(batches[k : k + 25]).combine_chunks() for k in range(0, len(batches), 25)
            ]:
                arrow.write_table(table)
            batches.clear()
    assert datasets.Dataset.from_file(str(work / "rows.arrow")).num_rows == prefixes // NODES * NODES


def _as_json(tree: ProblemTree) -> dict[str, object]:
    fields = {name: getattr(tree, name) for name in ProblemTree.__slots__}
    fields["teacher_logprobs"] = np.array([f"{x:.7g}" for x in tree.teacher_logprobs], float)  # digits of a float32
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()}


# Each measurement returns work done and seconds; its name is the side and what it does.


def store_open(work: Path, name: str = "trees.zarr") -> tuple[float, float]:
    from treeopo_storage.zarr_store import open_store

    start = time.perf_counter()
    count = open_store(work / name).node_count
    return count, time.perf_counter() - start


def _groups(problems: int) -> list[tuple[int, list[int]]]:
    rng = np.random.default_rng(1)
    return [(int(rng.integers(problems)), rng.choice(NODES, GROUP_SIZE, replace=False).tolist()) for _ in range(GROUPS)]


def store_groups(work: Path) -> tuple[float, float]:
    from treeopo_storage.zarr_store import open_store

    store = open_store(work / "trees.zarr")
    groups = _groups(store.problem_count)

    def once() -> int:
        return sum(len(store.prefix_tokens(problem, node)) for problem, nodes in groups for node in nodes)

    return GROUPS * GROUP_SIZE, _best(once)


def arrow_groups(work: Path) -> tuple[float, float]:
    import datasets

    rows = datasets.Dataset.from_file(str(work / "rows.arrow")).with_format("numpy")
    groups = _groups(rows.num_rows // NODES)

    def once() -> int:
        return sum(
            len(ids)
            for problem, nodes in groups
            for ids in rows[[problem * NODES + node for node in nodes]]["input_ids"]
        )

    return GROUPS * GROUP_SIZE, _best(once)


def store_prefix_stream(work: Path) -> tuple[float, float]:
    from treeopo_storage.zarr_store import open_store

    store = open_store(work / "trees.zarr")

    async def once() -> int:
        total = 0
        async for tree in stream_problems(store):
            for node in range(tree.node_count):
                total += len(tree.prefix_tokens(node))
        return total

    return store.node_count, _best(lambda: asyncio.run(once()))


def arrow_prefix_stream(work: Path) -> tuple[float, float]:
    import datasets

    rows = datasets.Dataset.from_file(str(work / "rows.arrow")).with_format("numpy")

    def once() -> int:
        return sum(len(ids) for batch in rows.iter(batch_size=1000) for ids in batch["input_ids"])

    return rows.num_rows, _best(once)


def store_tree_stream(work: Path) -> tuple[float, float]:
    from treeopo_storage.zarr_store import open_store

    store = open_store(work / "trees.zarr")

    async def once() -> None:
        async for _ in stream_problems(store):
            pass

    return _array_bytes(work), _best(lambda: asyncio.run(once()))


def zarr_tree_stream(work: Path) -> tuple[float, float]:
    import zarr

    group = zarr.open_group(work / "trees.zarr", mode="r")
    arrays: list[Any] = [group[name] for name in COLUMNS]

    def once() -> None:
        for array in arrays:
            for start in range(0, array.shape[0], 16 * array.chunks[0]):
                array[start : start + 16 * array.chunks[0]]

    return _array_bytes(work), _best(once)


def store_append(work: Path, batch: int = APPEND_PROBLEMS, limit: int | None = None) -> tuple[float, float]:
    from treeopo_storage.zarr_store import create_store, open_store, open_writer

    source, seconds = open_store(work / "trees.zarr"), 0.0
    problems = min(limit or source.problem_count, source.problem_count)
    with tempfile.TemporaryDirectory(dir=work) as directory:
        create_store(f"{directory}/copy.zarr", META)
        with open_writer(f"{directory}/copy.zarr") as writer:
            for start in range(0, problems, batch):
                trees = source.problems(start, min(start + batch, problems))
                began = time.perf_counter()
                writer.append(trees)
                seconds += time.perf_counter() - began
    return problems, seconds


def zarr_append(work: Path, batch: int = APPEND_PROBLEMS, limit: int | None = None) -> tuple[float, float]:
    """The same rows in the same batches with `zarr.Array.append`; no checks, no commit record, no fsync."""
    import zarr
    from treeopo_storage.packing import read_block
    from treeopo_storage.zarr_store import ZarrColumns, create_store

    source, seconds = ZarrColumns(work / "trees.zarr"), 0.0
    count = source.committed()["problem"]
    problems = min(limit or count, count)
    with tempfile.TemporaryDirectory(dir=work) as directory:
        create_store(f"{directory}/copy.zarr", META)
        arrays = {name: zarr.open_array(f"{directory}/copy.zarr/{name}") for name in COLUMNS}
        for start in range(0, problems, batch):
            columns = read_block(source.read, start, min(start + batch, problems))
            began = time.perf_counter()
            for name, rows in columns.items():
                arrays[name].append(rows)
            seconds += time.perf_counter() - began
    return problems, seconds


def store_structure(work: Path) -> tuple[float, float]:
    """Open and load parents, offsets and problems of the structure-only store."""
    from treeopo_storage.zarr_store import open_store

    start = time.perf_counter()
    structure = open_store(work / "structure.zarr").structure()
    loaded = (structure.first_node, structure.parent, structure.depth, structure.token_offsets)
    return len(loaded[1]), time.perf_counter() - start


SMALL = {"batch": SMALL_PROBLEMS, "limit": SMALL_APPENDS * SMALL_PROBLEMS}
MEASUREMENTS: dict[str, Callable[[Path], tuple[float, float]]] = {
    "store_open": store_open,
    "structure_open": lambda work: store_open(work, "structure.zarr"),
    "store_structure": store_structure,
    "store_groups": store_groups,
    "arrow_groups": arrow_groups,
    "store_prefix_stream": store_prefix_stream,
    "arrow_prefix_stream": arrow_prefix_stream,
    "store_tree_stream": store_tree_stream,
    "zarr_tree_stream": zarr_tree_stream,
    "store_append": store_append,
    "zarr_append": zarr_append,
    "store_append_small": lambda work: store_append(work, **SMALL),
    "zarr_append_small": lambda work: zarr_append(work, **SMALL),
}


def _best(once: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _rows(work: Path) -> Mapping[str, int]:
    from treeopo_storage.zarr_store import ZarrColumns

    return ZarrColumns(work / "trees.zarr").committed()


def _array_bytes(work: Path) -> int:
    """Bytes of the committed rows, uncompressed."""
    counts = _rows(work)
    return sum(counts[column.axis] * np.dtype(column.dtype).itemsize for column in COLUMNS.values())


def measure(work: Path, name: str) -> dict[str, float]:
    """Run one measurement in a process of its own: rate per second, seconds, peak resident MiB."""
    command = [sys.executable, __file__, "--work", str(work), "--measure", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def compare(work: Path, what: str, ours: str, theirs: str, unit: str, scale: float = 1.0) -> None:
    runs = [(measure(work, ours), measure(work, theirs)) for _ in range(2)]  # alternating
    mine, other = (max(side, key=lambda run: run["rate"]) for side in zip(*runs, strict=True))
    print(
        f"| {what} | {mine['rate'] * scale:,.0f} {unit} | {other['rate'] * scale:,.0f} {unit} "
        f"| {mine['rate'] / other['rate']:.2f} | {mine['peak_mib']:.0f} / {other['peak_mib']:.0f} |"
    )


def tree_bytes(path: Path) -> int:
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def build_structure(work: Path, prefixes: int) -> None:
    """A store of many nodes with one token each: the size of a big store's structure without its tokens."""
    from treeopo_storage.zarr_store import create_store, open_writer

    template = next(synthetic_trees(NODES, step_tokens=1))[0]
    template = replace(template, texts=("",) * NODES)
    create_store(work / "structure.zarr", META)
    with open_writer(work / "structure.zarr") as writer:
        for start in range(0, prefixes // NODES, 25_000):
            stop = min(start + 25_000, prefixes // NODES)
            writer.append([replace(template, id=str(problem)) for problem in range(start, stop)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefixes", type=int, default=1_000_000)
    parser.add_argument("--structure-prefixes", type=int, default=10_000_000)
    parser.add_argument(
        "--work", type=Path, default=None, help="where the stores go (and stay); a temporary folder if absent"
    )
    parser.add_argument("--sweep", action="store_true", help="compare chunk sizes instead")
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        amount, seconds = MEASUREMENTS[options.measure](options.work)
        # VmHWM, not ru_maxrss: the latter starts from the parent's at the time of the fork.
        status = Path("/proc/self/status").read_text().split()
        peak = int(status[status.index("VmHWM:") + 1]) / 1024
        print(json.dumps({"rate": amount / seconds, "seconds": seconds, "peak_mib": peak}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(exist_ok=True)
        if options.sweep:
            sweep(work, options.prefixes)
            return
        if not (work / "rows.arrow").exists():
            prepare(work, options.prefixes)
        if not (work / "structure.zarr").exists():
            build_structure(work, options.structure_prefixes)
        report(work)


def report(work: Path) -> None:
    print(f"{os.cpu_count()} CPUs; open: {measure(work, 'store_open')['seconds'] * 1e3:.1f} ms\n")
    print("| | treeopo store | other side | ratio | peak MiB |\n| --- | --- | --- | --- | --- |")
    compare(work, "random groups of 8 prefixes, vs datasets", "store_groups", "arrow_groups", "prefixes/s")
    compare(work, "all prefixes in order, vs datasets", "store_prefix_stream", "arrow_prefix_stream", "prefixes/s")
    compare(work, "all trees in order, vs raw zarr", "store_tree_stream", "zarr_tree_stream", "MB/s", 1e-6)
    compare(work, f"append {APPEND_PROBLEMS} at a time, vs raw zarr", "store_append", "zarr_append", "problems/s")
    small = f"append {SMALL_PROBLEMS} at a time, vs raw zarr"
    compare(work, small, "store_append_small", "zarr_append_small", "problems/s")
    problems = _rows(work)["problem"]
    sizes = {
        "store": tree_bytes(work / "trees.zarr") / problems,
        "JSON Lines + zstd": os.path.getsize(work / "trees.jsonl.zst") / min(problems, JSON_PROBLEMS),
        "Arrow (prefix tokens only)": os.path.getsize(work / "rows.arrow") / problems,
    }
    print("\non disk:", ", ".join(f"{name} {size / 1e3:.1f} kB a problem" for name, size in sizes.items()))
    opened, loaded = measure(work, "structure_open"), measure(work, "store_structure")
    print(f"structure of {opened['rate'] * opened['seconds']:,.0f} prefixes: open {opened['seconds'] * 1e3:.1f} ms")
    print(f"its parents, depths and offsets: {loaded['seconds']:.2f} s, peak {loaded['peak_mib']:.0f} MiB")


def sweep(work: Path, prefixes: int) -> None:
    """Chunk sizes against each other; what the defaults in `zarr_store` were chosen from."""
    from treeopo_storage import zarr_store

    print("| tokens a chunk | nodes a chunk | groups, prefixes/s | append 8, problems/s | trees, MB/s | files | MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for token_rows, node_rows in ((65_536, 8_192), (262_144, 32_768), (1_048_576, 131_072), (4_194_304, 524_288)):
        zarr_store.CHUNK_ROWS = {  # type: ignore[misc]
            "problem": 8192,
            "node": node_rows,
            "token": token_rows,
        }
        with tempfile.TemporaryDirectory(dir=work) as directory:
            zarr_store.create_store(f"{directory}/trees.zarr", META)
            with zarr_store.open_writer(f"{directory}/trees.zarr") as writer:
                for batch in synthetic_trees(prefixes):
                    writer.append(batch)
            here = Path(directory)
            groups, stream = (measure(here, name)["rate"] for name in ("store_groups", "store_tree_stream"))
            amount, seconds = MEASUREMENTS["store_append_small"](here)
            files = sum(1 for entry in here.rglob("*") if entry.is_file())
            print(
                f"| {token_rows} | {node_rows} | {groups:,.0f} | {amount / seconds:,.0f} | {stream / 1e6:,.0f} "
                f"| {files} | {tree_bytes(here) / 1e6:,.0f} |"
            )


if __name__ == "__main__":
    main()
