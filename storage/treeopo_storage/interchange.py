"""In and out of a store: prefixes as JSON Lines or Parquet, trees from traces, stores merged."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from treeopo_storage.errors import (
    EmptyStoreError,
    MissingDependencyError,
    StoreAccessError,
    StoreExistsError,
    TreeDataError,
)
from treeopo_storage.joint import TreeTokenizer
from treeopo_storage.protocol import TreeStore, TreeWriter
from treeopo_storage.schema import Action, ProblemTree, StoreMeta
from treeopo_storage.streaming import problem_blocks
from treeopo_storage.text_files import json_line
from treeopo_storage.traces import Trace, TreeBuilder


def prefix_rows(tree: ProblemTree) -> Iterator[dict[str, Any]]:
    """One row per node: the prompt, the steps before it, and its own step as the completion.

    `value` is the mean return (null without visits), `reward` is null where the node is not terminal. The first row of
    a problem is its root: no steps, an empty completion.
    """
    for node in range(tree.node_count):
        path, lo, hi = tree.path(node), tree.token_offsets[node], tree.token_offsets[node + 1]
        visits = int(tree.visits[node])
        yield {
            "problem": tree.id,
            "node": node,
            "parent": int(tree.parent[node]),
            "question": tree.question,
            "answer": tree.answer,
            "prompt": tree.texts[0],
            "prefix_steps": [tree.texts[step] for step in path[1:-1]],
            "completion": tree.texts[node] if node else "",
            "completion_token_ids": tree.token_ids[lo:hi].tolist() if node else [],
            "action": Action(int(tree.action[node])).name.lower(),
            "visits": visits,
            "value": float(tree.value_sum[node]) / visits if visits else None,
            "terminal": bool(tree.terminal[node]),
            "reward": float(tree.reward[node]) if tree.terminal[node] else None,
        }


def export_jsonl(store: TreeStore, path: Path) -> int:
    """Write `prefix_rows` of every problem to a new JSON Lines file; the number of rows."""
    rows = 0
    with _new_file(path) as partial, partial.open("w", encoding="utf-8") as lines:
        for block in _blocks(store):
            for row in block:
                lines.write(json_line(row))
            rows += len(block)
    return rows


def export_parquet(store: TreeStore, path: Path) -> int:
    """Write `prefix_rows` of every problem to a new Parquet file (pyarrow needed), which `datasets` loads as it is."""
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("Parquet needs pyarrow: pip install pyarrow") from error
    text, ids = pa.string(), pa.list_(pa.int32())
    types = {
        "problem": text,
        "node": pa.int32(),
        "parent": pa.int32(),
        "question": text,
        "answer": text,
        "prompt": text,
        "prefix_steps": pa.list_(text),
        "completion": text,
        "completion_token_ids": ids,
        "action": text,
        "visits": pa.int32(),
        "value": pa.float64(),
        "terminal": pa.bool_(),
        "reward": pa.float32(),
    }
    schema, rows = pa.schema(list(types.items())), 0
    with _new_file(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as parquet:
        for block in _blocks(store):
            parquet.write_table(pa.Table.from_pylist(block, schema))
            rows += len(block)
    return rows


def trees_from_traces(
    traces: Iterable[tuple[str, Trace]],
    separator: str,
    tokenize: TreeTokenizer,
    *,
    end_of_text: Callable[[str], Sequence[int]] = lambda prompt: (),
) -> list[ProblemTree]:
    """Trees of traces, each with the words that name it in a complaint (`formats.read_traces`), all of them in memory.

    Traces of one problem (same id, or same question where there is none) share the nodes of the steps they begin with;
    a node's visits are the traces through it, its value sum their rewards. `separator` ends each step but a trace's
    last, which `end_of_text(prompt)` ends. A trace is tokenised as a whole (`treeopo_storage.joint`).

    Raises `TreeDataError` if two traces contradict each other, `EmptyStoreError` without traces.
    """
    builders: dict[str, TreeBuilder] = {}
    for where, trace in traces:
        if trace.id not in builders:
            builders[trace.id] = TreeBuilder(trace, separator, tokenize, end_of_text(trace.prompt))
        builders[trace.id].add(trace, where)
    if not builders:
        raise EmptyStoreError("there are no traces in it; nothing to import")
    return [builder.build() for builder in builders.values()]


def merged_meta(sources: Sequence[TreeStore]) -> StoreMeta:
    """The settings of a store that is to hold all problems of `sources` (at least one).

    Tokenizer, teacher and separator must agree and no problem may be in two of them, or `TreeDataError`. Of the
    vocabularies the largest is kept: models of one tokenizer pad their heads differently. Search settings may differ
    (parts of a data set built side by side do): those that agree are kept, and `parts` lists all of them.
    """
    metas, seen = [source.meta for source in sources], set[str]()
    first, agreed = metas[0], dict(metas[0].search)
    for other in metas[1:]:
        for name in ("tokenizer_fingerprint", "teacher", "separator"):
            if (theirs := getattr(other, name)) != (ours := getattr(first, name)):
                raise TreeDataError(f"stores differ in {name}: {ours!r} and {theirs!r}; they cannot be merged")
        agreed = {name: value for name, value in agreed.items() if other.search.get(name) == value}
    for problem_id in chain.from_iterable(source.problem_ids() for source in sources):
        if problem_id in seen:
            raise TreeDataError(f"problem {problem_id!r} is in more than one of the stores; they cannot be merged")
        seen.add(problem_id)
    if any(meta.search != first.search for meta in metas):
        agreed["parts"] = [dict(meta.search) for meta in metas]
    sizes = [meta.vocabulary_size for meta in metas]
    largest = None if None in sizes else max(size for size in sizes if size is not None)
    return replace(first, search=agreed, vocabulary_size=largest)


def copy_problems(sources: Sequence[TreeStore], writer: TreeWriter) -> int:
    """Append every problem of `sources`, in order; the number of problems."""
    for source in sources:
        for start, stop in problem_blocks(source.structure().first_node):
            writer.append(source.problems(start, stop))
    return sum(source.problem_count for source in sources)


def _blocks(store: TreeStore) -> Iterator[list[dict[str, Any]]]:
    if not store.problem_count:
        raise EmptyStoreError("the store holds no committed problem; there is nothing to export")
    for start, stop in problem_blocks(store.structure().first_node):
        yield [row for tree in store.problems(start, stop) for row in prefix_rows(tree)]


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its name when the block ends well, and is gone when it does not."""
    if path.exists():
        raise StoreExistsError(f"{path} already exists; choose another name")
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise StoreAccessError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # a disk that takes nothing has nothing to give back
            partial.unlink(missing_ok=True)
