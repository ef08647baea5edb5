"""`treeopo store`: what a person types and reads."""

import json
from pathlib import Path

import pytest
from treeopo_cli.store import app
from treeopo_storage import (
    DamagedStoreError,
    NotAStoreError,
    StoreMeta,
    TreeDataError,
    create_store,
    open_store,
    open_writer,
)
from treeopo_storage.conformance import random_tree
from typer.testing import CliRunner, Result


def run(*arguments: object) -> Result:
    """Errors that `treeopo` itself turns into one line and status 2 come out as they are."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def make(path: Path, *names: str) -> Path:
    create_store(path, StoreMeta("0123456789abcdef", "teacher", {"rollouts": 16}))
    with open_writer(path) as writer:
        writer.append([random_tree(name, seed, nodes=4) for seed, name in enumerate(names)])
    return path


def test_info_tells_what_a_store_holds(tmp_path: Path) -> None:
    path = make(tmp_path / "trees.zarr", "p", "q")
    shown = run("info", path).output
    assert "prefixes               8" in shown
    assert "of different text" in shown
    assert "By number of children" in shown
    assert r'separator              "\n\n"' in shown
    facts = json.loads(run("info", path, "--json").output)
    assert (facts["problems"], facts["teacher"], facts["search"]) == (2, "teacher", {"rollouts": 16})


def test_verify_says_a_whole_store_is_whole_and_names_damage(tmp_path: Path) -> None:
    path = make(tmp_path / "trees.zarr", "p", "q")
    assert "is whole: 2 problems, 8 prefixes" in run("verify", path).output
    (path / "nodes/visits/c/0").unlink()
    with pytest.raises(DamagedStoreError, match="nodes/visits row 0"):
        run("verify", path)


def test_export_takes_its_format_from_the_name(tmp_path: Path) -> None:
    path = make(tmp_path / "trees.zarr", "p")
    assert "4 rows written" in run("export", path, tmp_path / "rows.jsonl").output
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 4
    refused = run("export", path, tmp_path / "rows.csv")
    assert refused.exit_code == 2
    assert "must end in .jsonl or .parquet" in " ".join(refused.output.replace("│", " ").split())


def test_merge_makes_a_new_store_or_none(tmp_path: Path) -> None:
    parts = [make(tmp_path / "a.zarr", "p", "q"), make(tmp_path / "b.zarr", "r")]
    assert "3 problems merged" in run("merge", *parts, "-o", tmp_path / "c.zarr").output
    assert open_store(tmp_path / "c.zarr").problem_ids() == ["p", "q", "r"]
    with pytest.raises(NotAStoreError, match="there is no tree store at"):
        run("merge", parts[0], tmp_path / "absent", "-o", tmp_path / "d.zarr")
    assert not (tmp_path / "d.zarr").exists()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four words: <eos> ? a b."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<eos>": 0, "?": 1, "a": 2, "b": 3}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("tokenizer")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(path)
    return path


def test_import_builds_trees_with_the_students_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    lines = [{"question": "a b", "answer": "b", "steps": ["a", step], "reward": step == "b"} for step in ("a", "b")]
    (tmp_path / "traces.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = run("import", tmp_path / "traces.jsonl", "-o", tmp_path / "t.zarr", "--tokenizer", tokenizer)
    assert "1 problems imported" in done.output
    store = open_store(tmp_path / "t.zarr")
    assert store.meta.separator == "\n\n"
    assert store.prefix_tokens(0, 3).tolist() == [2, 3, 2, 3, 0]
    assert store.structure().reward[2:].tolist() == [0, 1]


def test_retokenize_makes_a_store_of_the_other_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    path = make(tmp_path / "trees.zarr", "p", "q")
    done = run("retokenize", path, "-o", tmp_path / "new.zarr", "--tokenizer", tokenizer)
    assert "8 prefixes re-tokenised" in done.output
    assert "8 no longer decode to their text" in done.output
    assert open_store(tmp_path / "new.zarr").meta.vocabulary_size == 4


def test_import_reads_another_project_s_files_and_says_what_it_left_out(tmp_path: Path, tokenizer: Path) -> None:
    sample = {"solution": "Step 1: a\nStep 2: b", "summary": "The final answer is 2", "correct": True}
    rows = [{"content": "a b", "real_answer": 2, "policy_samples": [sample, {"correct": False}]}]
    (tmp_path / "out.json").write_text(json.dumps(rows))
    arguments = ("import", tmp_path / "out.json", "-o", tmp_path / "t.zarr", "--tokenizer", tokenizer)
    done = run(*arguments, "--format", "rest-mcts", "--reward", "graded", "--grader", "number")
    assert "1 problems imported" in done.output
    assert "left out: 1 without a text" in done.output
    store = open_store(tmp_path / "t.zarr")
    assert store.problem(0).texts == (
        "Question: a b\n\nAnswer:\n\n",
        "Step 1: a\n\n",
        "Step 2: b\n\n",
        "The final answer is 2",
    )
    assert store.meta.search == {"traces": "out.json", "format": "rest-mcts", "reward": "graded", "grader": "number"}
    with pytest.raises(TreeDataError, match=r"this looks like ReST-MCTS\*: give --format rest-mcts"):
        run(*arguments)
