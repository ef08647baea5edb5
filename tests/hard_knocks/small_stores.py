"""Stores of a tree or two, built by a scripted teacher or from traces, and commands as they are typed."""

import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from treeopo_cli.main import app as commands
from treeopo_storage import (
    ProblemTree,
    StoreMeta,
    TreeStore,
    create_store,
    open_store,
    open_writer,
)
from treeopo_storage.formats import read_traces, traces_among
from treeopo_storage.interchange import trees_from_traces
from typer.testing import CliRunner

from tests.hard_knocks.odd_tokenizers import EOS
from treeopo.config import BuildConfig
from treeopo.engines.scripted import Pieces, ScriptedEngine, ScriptedPolicy
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.jobs.build import build_store
from treeopo.ports import Notify
from treeopo.records import Problem

PROBLEM = Problem("sum", "What is 2+3+4?", "9")
NAMES_ONE = Problem("names", f"What does {EOS} mean in 3+4?", "7")


def talk(prompt: str, rng: random.Random, version: int) -> Pieces:
    return [(f"{rng.randrange(9)}\n\n", -1.0), ("#### 9", -1.0)]


def build(
    tmp_path: Path,
    tokenizer: ModelTokenizer,
    engine: type[ScriptedEngine] = ScriptedEngine,
    policy: ScriptedPolicy = talk,
    notify: Notify = lambda notice: None,
    **settings: object,
) -> Path:
    """`treeopo mcts build` of `PROBLEM` by a scripted teacher; the store's path."""
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": PROBLEM.question, "answer": "It is 9.\n#### 9"}) + "\n")
    teacher, output = tokenizer.hf.name_or_path, tmp_path / "t.zarr"
    values = {"problems": str(tmp_path / "p.jsonl"), "teacher": teacher, "output": output}

    async def start(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return engine(policy, tokenizer)

    config = BuildConfig.model_validate(values | {"search": {"rollouts": 4}} | settings)
    build_store(config, notify, lambda *progress: None, start)
    return output


def typed(*arguments: str) -> str:
    return CliRunner().invoke(commands, arguments, catch_exceptions=False).output


def imported(tmp_path: Path, tokenizer: ModelTokenizer, *traces: Mapping[str, object]) -> ProblemTree:
    """The tree that `treeopo store import` makes of traces of one problem."""
    rows = [{"question": "2+3+4?", "answer": "9", "reward": 1, **trace} for trace in traces]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = traces_among(read_traces([str(tmp_path / "traces.jsonl")]), Counter())
    (tree,) = trees_from_traces(found, "\n\n", tokenizer, end_of_text=tokenizer.end_after)
    return tree


def whole(tree: ProblemTree, node: int) -> str:
    return "".join(tree.texts[step] for step in tree.path(node))


def stored(path: Path, tokenizer: ModelTokenizer, *trees: ProblemTree) -> TreeStore:
    create_store(path, StoreMeta(tokenizer.fingerprint, teacher=tokenizer.hf.name_or_path))
    with open_writer(path) as writer:
        writer.append(trees)
    return open_store(path)
