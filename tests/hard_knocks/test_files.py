"""Text files as people have them: byte order marks, line ends, separators that are no line ends, compression."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import pytest
from treeopo_storage import MemoryTreeStore, StoreError, StoreMeta
from treeopo_storage.conformance import random_tree
from treeopo_storage.errors import FileFormatError
from treeopo_storage.interchange import export_jsonl
from treeopo_storage.text_files import json_line, read_lines, read_text, whole_lines

from treeopo.config import TrainConfig, load_config
from treeopo.engines.scripted import CharTokenizer
from treeopo.errors import ConfigError, ModelError, RunError
from treeopo.evaluation.accuracy import Graded
from treeopo.evaluation.answers import Answers
from treeopo.problems import load_problems
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Message, Prompter, PromptSettings
from treeopo.records import Problem
from treeopo.run.directory import RunDirectory
from treeopo.run.models import resolve
from treeopo.search.actions import TEMPLATES, ActionPrompts
from treeopo.search.settings import ActionName, SearchSettings

SEPARATORS = "\u2028\u2029\x85\x0c\x0b\x1c"
"""What `str.splitlines` takes for the end of a line, and JSON Lines do not."""

QUESTION = Problem("p", "How many?", "3")
TEXT = "Frage: {question} è\n\n"


class Characters(CharTokenizer):
    def chat(self, messages: Sequence[Message], chat_arguments: object) -> list[int]:
        raise AssertionError("no chat is asked for")

    def show(self, messages: Sequence[Message], chat_arguments: object) -> str:
        raise AssertionError("no chat is asked for")


def asked(template: Path) -> str:
    prompter = Prompter(Characters(), PromptSettings(template=template), ProblemSet("numbers", (QUESTION,)))
    return CharTokenizer().decode(prompter(QUESTION))


def zstd(content: bytes) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped]

    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


# langchain-ai/langchain-community#138, huggingface/datasets#8241, microsoft/promptflow#4172
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_no_mark_and_no_carriage_return_reaches_a_prompt(tmp_path: Path, encoding: str, ends: str) -> None:
    path = tmp_path / "template.txt"
    path.write_bytes(TEXT.replace("\n", ends).encode(encoding))
    assert asked(path) == TEXT.replace("{question}", "How many?")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_settings_with_a_mark_and_windows_line_ends_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes('store = "trees.zarr"\r\noutput = "run"\r\nstudent = "tiny"\r\nsteps = 7\r\n'.encode(encoding))
    assert load_config(TrainConfig, file=path, flags={}).steps == 7


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_an_adapter_s_description_with_a_mark_is_refused_by_name_for_peft_cannot_read_it(
    tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "adapter_config.json").write_bytes('{"base_model_name_or_path": "tiny"}'.encode(encoding))
    with pytest.raises(
        ModelError, match="begins with a byte order mark, which PEFT refuses; save it as UTF-8 without one"
    ):
        resolve(str(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_run_whose_settings_an_editor_saved_with_a_mark_opens(tmp_path: Path, encoding: str) -> None:
    config = TrainConfig(store=tmp_path / "trees.zarr", output=tmp_path, student="org/tiny")
    RunDirectory.create(config).begin()
    path = tmp_path / "config.json"
    path.write_bytes(path.read_text(encoding="utf-8").replace("\n", "\r\n").encode(encoding))
    assert RunDirectory.is_at(tmp_path)
    assert RunDirectory.open(tmp_path).config == config


def test_search_templates_with_a_mark_are_read_without_it(tmp_path: Path) -> None:
    for name in ("subquestion", "reanswer", "rephrase"):
        text = (TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")
        (tmp_path / f"{name}.txt").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    ours, theirs = (
        ActionPrompts(SearchSettings(actions=get_args(ActionName), templates=folder), CharTokenizer().encode).texts
        for folder in (None, tmp_path)
    )
    assert ours == theirs


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_a_compressed_text_is_read_whatever_its_name(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "lines"
    path.write_bytes(pack(b"\xef\xbb\xbfone\r\ntwo"))
    assert list(read_lines(path)) == ["one", "two"]
    path.write_bytes(pack(b"some text\n" * 1000)[:-9])
    with pytest.raises(FileFormatError, match=r"is cut short or damaged .*; copy or download it again"):
        read_text(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + b"\0" * 300, "is a zip archive .*unzip -d DIR"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer.*; run git lfs pull"),
        (b"/annex/objects/SHA256E-s1--0.jsonl\n", "run git annex get"),
        (b"\n<!DOCTYPE html><html>", "is a web page; download the raw file"),
        (b"SQLite format 3\0", "is an SQLite database"),
        (b"a" * 257 + b"ustar\0" + b"0" * 250, "is a tar archive.*tar -xf"),
        ("one\ntwo".encode("utf-16-le"), ":1: holds NUL bytes.*iconv -f UTF-16LE"),
        ("one\nGrüße".encode("latin-1"), ":2: is not UTF-8 text .*iconv -f LATIN1"),
        (b"\xff\xfe\x00\xd8\x0a\x00", "is not the UTF-16 text it begins as"),
    ],
)
def test_what_is_no_text_is_named_with_what_mends_it(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        read_text(tmp_path / "t.txt")
    for read in (asked, lambda path: load_config(TrainConfig, file=path, flags={})):
        with pytest.raises(ConfigError, match=message):
            read(tmp_path / "t.txt")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        read_text(tmp_path / "absent")
    with pytest.raises(ConfigError, match="No such file or directory; give an existing TOML file"):
        load_config(TrainConfig, file=tmp_path / "absent.toml", flags={})


# huggingface/tau#354, wbolster/jsonlines#53, datalad/datalad#3523
def test_an_evaluation_goes_on_whatever_separators_its_completions_hold(tmp_path: Path) -> None:
    rows = [Graded(f"p{i}", 0, f"a{mark}b", "1", 1.0, truncated=False, tokens=2) for i, mark in enumerate(SEPARATORS)]
    with Answers(tmp_path, {"seed": 0}) as answers:
        for row in rows:
            answers.add("set", "model", row)
    path = tmp_path / "completions.jsonl"
    # as version 0.1 wrote it: the separators bare; and the last row cut in the middle of a character
    bare = "".join(json.dumps(json.loads(line), ensure_ascii=False) + "\n" for line in whole_lines(path))
    path.write_bytes(bare.encode() + '{"problems": "set", "text": "é'.encode()[:-1])
    for _ in range(2):
        with Answers(tmp_path, {"seed": 0}) as again:
            assert list(again.done("set", "model").values()) == rows


def test_a_damaged_completion_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    with Answers(tmp_path, {"seed": 0}) as answers:
        answers.add("set", "model", Graded("p", 0, "a", "1", 1.0, truncated=False, tokens=2))
    path = tmp_path / "completions.jsonl"
    kept = path.read_bytes() + b'{"problems": "set"\n'
    path.write_bytes(kept)
    with pytest.raises(RunError, match=r"completions.jsonl:2 is no completion; remove that line"):
        Answers(tmp_path, {"seed": 0})
    assert path.read_bytes() == kept


def test_a_line_we_write_is_one_line_for_every_reader() -> None:
    text = f"a{SEPARATORS}b\ud800c"
    line = json_line({"text": text})
    assert line.splitlines(keepends=True) == [line]
    assert json.loads(line) == {"text": text}
    line.encode()


# wbolster/jsonlines#53
def test_an_exported_store_has_a_line_a_row_for_every_reader(tmp_path: Path) -> None:
    tree = random_tree("p", 1, nodes=3)
    memory = MemoryTreeStore(StoreMeta("0123456789abcdef", "teacher"))
    with memory.open_writer() as writer:
        object.__setattr__(tree, "texts", ("q\u2028?", *tree.texts[1:]))
        writer.append([tree])
    rows = export_jsonl(memory.open_store(), tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == rows == 3
    assert json.loads(lines[0])["prompt"] == "q\u2028?"


# hegeldev/hegel-core#25
def test_a_worked_solution_has_steps_at_new_lines_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    row = {"question": "q", "answer": "one\u2028two\x0cthree\nfour\n#### 4"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (problem,) = load_problems(str(path))
    assert problem.solution == "one\u2028two\x0cthree\n\nfour\n\n#### 4"
