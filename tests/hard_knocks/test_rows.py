"""Rows in the shapes people have them, for `--problems` and for traces alike: kinds of files, kinds of values."""

import csv
import decimal
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from treeopo_storage import TreeDataError
from treeopo_storage.cells import number_text
from treeopo_storage.errors import FileFormatError
from treeopo_storage.formats import read_traces
from treeopo_storage.formats.plain import trace_of
from treeopo_storage.interchange import trees_from_traces
from treeopo_storage.rows import file_rows
from treeopo_storage.shards import find_files
from treeopo_storage.text_files import json_line
from treeopo_storage.traces import Trace

from tests.hard_knocks.odd_tokenizers import byte_level, saved
from treeopo.errors import ProblemError
from treeopo.problems import load_problems
from treeopo.problems.graders.number import parse_number

ROWS: list[dict[str, Any]] = [{"q": f"How many are {n}, and {n}?", "a": str(2 * n), "id": n} for n in (1, 2, 3)]
COLUMNS = "?question=q&answer=a&id=id"


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def delimited(mark: str) -> str:
    table = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    return "".join(mark.join(f'"{cell}"' for cell in row) + "\r\n" for row in table)


def problems(path: Path, columns: str = COLUMNS) -> list[tuple[str, str, str]]:
    return [(problem.id, problem.question, problem.answer) for problem in load_problems(f"{path}{columns}")]


EXPECTED = [(str(row["id"]), row["q"], row["a"]) for row in ROWS]


# huggingface/datasets#5088, #6460, nuprl/MultiPL-E#81
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", lines(ROWS)),
        ("p.JSONL", "\n" + lines(ROWS).replace("\n", "\r\n\r\n")),
        ("p.json", json.dumps(ROWS)),
        ("p.json", "\n" + json.dumps(ROWS, indent=4)),
        ("p.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("p.txt", lines(ROWS)),
        ("p.csv", delimited(",")),
        ("p.csv", delimited(";")),
        ("P.TSV", delimited("\t")),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_one_set_of_problems_is_the_same_in_every_text_file(
    tmp_path: Path, name: str, content: str, packed: bool
) -> None:
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content.encode("utf-8-sig")) if packed else content.encode("utf-8-sig"))
    assert problems(path) == EXPECTED


def parquet(path: Path, columns: dict[str, Any], row_group_size: int = 2) -> Path:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    table = pa.table(columns)
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table.slice(0, 0))  # an empty row group
        writer.write_table(table, row_group_size=row_group_size)
    return path


def column(name: str, kind: str) -> Any:
    import pyarrow as pa

    values = [row[name] for row in ROWS]
    match kind:
        case "binary":
            return pa.array([str(value).encode() for value in values], pa.binary())
        case "dictionary":
            return pa.array(values, pa.string()).dictionary_encode()
        case "decimal":
            return pa.array([decimal.Decimal(value) for value in values], pa.decimal128(10, 2))
        case "float" | "double" | "int8" | "large_string" | "string_view":
            return pa.array([int(value) for value in values] if "string" not in kind else values, kind)
        case _:
            return pa.array(values)


# frequency-chain/parquetjs#121, apache/arrow-rs#3373
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("string", "decimal"),
        ("binary", "binary"),
        ("large_string", "double"),
        ("dictionary", "int8"),
        ("string", "float"),
        ("string_view", "string"),
    ],
)
def test_parquet_of_any_reasonable_type_gives_the_same_problems(tmp_path: Path, question: str, answer: str) -> None:
    columns = {"q": column("q", question), "a": column("a", answer), "id": column("id", "int64")}
    assert problems(parquet(tmp_path / "p.PARQUET", columns)) == EXPECTED
    (tmp_path / "packed.parquet.gz").write_bytes(gzip.compress((tmp_path / "p.PARQUET").read_bytes()))
    assert problems(tmp_path / "packed.parquet.gz") == EXPECTED


def test_a_column_inside_another_is_named_by_both(tmp_path: Path) -> None:
    nested = [{"problem": {"text": row["q"], "gold": {"value": row["a"]}}, "id": row["id"]} for row in ROWS]
    columns = "?question=problem.text&answer=problem.gold.value&id=id"
    path = parquet(tmp_path / "p.parquet", {"problem": [row["problem"] for row in nested], "id": [1, 2, 3]})
    assert problems(path, columns) == EXPECTED
    (tmp_path / "p.jsonl").write_text(lines(nested))
    assert problems(tmp_path / "p.jsonl", columns) == EXPECTED
    (tmp_path / "dotted.jsonl").write_text(lines([{"problem.text": row["q"], "a": row["a"]} for row in ROWS]))
    found = problems(tmp_path / "dotted.jsonl", "?question=problem.text&answer=a")
    assert [question for _, question, _ in found] == [row["q"] for row in ROWS]


def test_a_short_float_is_the_number_that_was_written(tmp_path: Path) -> None:
    """0.1 in 32 bits is 0.10000000149 in 64."""
    import pyarrow as pa

    path = parquet(tmp_path / "p.parquet", {"q": ["x"], "a": pa.array([0.1], pa.float32())})
    assert problems(path, "?question=q&answer=a")[0][2] == "0.1"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
        ("p.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
        ("p.parquet", b"{}\n", "is no Parquet file, whatever its name"),
        ("p.parquet", b"PAR1 and no more", "no whole Parquet file, after row 0"),
        ("p.jsonl", b"PK\x03\x04", "unzip"),
        ("p.arrow", b"ARROW1\0\0", "is an Arrow file.*to_parquet"),
        ("p.jsonl", b"{'q': 1}\n", "single quotes are Python's; write it by json.dumps"),
        ("p.jsonl", b'{"q": 1}}\n', r":1: not a line of JSON \(more after its end, column 9\)"),
        ("p.json", b'[{"q": 1},\n {"q" 2}]\n', r"p.json:2: not JSON \(expecting ':' delimiter"),
        (
            "p.csv",
            b"q,a,id\ny,z,2,2\n",
            "row 1: has 4 cells where the header names 3 columns; put",
        ),
        ("p.csv", b'q,a\n"x"y,1\n', "is no line of CSV"),
        ("p.csv", b"q,a,q\nx,1,y\n", "its header names 'q' more than once"),
    ],
)
def test_what_cannot_be_read_is_named_with_what_mends_it(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProblemError, match=message) as caught:
        load_problems(f"{tmp_path / name}{COLUMNS}")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileFormatError, match=message):
        list(read_traces([str(tmp_path / name)]))


def test_a_cut_parquet_says_after_which_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", {"q": ["x"] * 3, "a": ["1"] * 3})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileFormatError, match=r"no whole Parquet file, after row 0 .*; copy it again"):
        list(file_rows(path))


def test_an_answer_alone_where_a_worked_solution_is_expected_says_how_to_name_it(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(lines([{"question": "x", "answer": "12"}]))
    with pytest.raises(ProblemError, match=r"or name the columns \(FILE\?question=COLUMN&answer=answer\) if it is"):
        load_problems(str(path))
    path.write_text(lines([{"question": "x", "answer": 12}]))
    assert load_problems(str(path))[0].answer == "12"  # a number is no worked solution


def traces(tmp_path: Path, *fields: str) -> Path:
    """A file with one trace a group of fields, which stand after the usual ones."""
    path = tmp_path / "t.jsonl"
    usual = '{"question": "x", "answer": "3", "steps": ["1+2=3", "so 3"], "reward": 1, '
    path.write_text("".join(f"{usual}{extra}}}\n" for extra in fields))
    return path


def only_trace(path: Path) -> Trace:
    ((_, trace),) = read_traces([str(path)])
    assert isinstance(trace, Trace)
    return trace


# zhentingqi/rStar data/SVAMP
@pytest.mark.parametrize(
    ("written", "gold"),
    [
        ("51.0", "51"),
        ("12", "12"),
        ("0", "0"),
        ("-0.0", "-0"),
        ("1e16", "10000000000000000"),
        ("1e+20", "100000000000000000000"),
        ("1.5e-7", "0.00000015"),
        ("0.30000000000000004", "0.30000000000000004"),
        ("12345678901234567890.5", "12345678901234567890.5"),
        ('"70,000"', "70,000"),
    ],
)
def test_a_gold_that_is_a_number_is_written_in_full(tmp_path: Path, written: str, gold: str) -> None:
    """Through a float, 1e16 would be `1e+16`, which states no number, and 12345678901234567890.5 another number."""
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"q": "x", "a": {written}, "id": 0}}\n')
    assert problems(path) == [("0", "x", gold)]
    assert parse_number(gold) is not None
    trace = only_trace(traces(tmp_path, f'"answer": {written}'))
    assert trace.answer == gold


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("true", "is true; give a text or a number"),
        ("null", "is null; give a text or a number"),
        ("[1]", "is a list of 1; give a text or a number"),
        ('{"b": 1}', r"is an object \(b\); give a text or a number"),
        ('" "', "is empty; give a text or a number"),
        ("NaN", "is NaN; give a finite number"),
        ('"\\ud83d 7"', r"holds half a character \(\\ud83d, at 0\), as cut texts do; mend it"),
        ("1e999999999", "is 1E.999999999, of more than 400 digits; give it as a text"),
    ],
)
def test_an_answer_that_is_none_is_refused_in_words_that_fit(tmp_path: Path, value: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"q": "x", "a": {value}}}\n')
    with pytest.raises(ProblemError, match=f"p.jsonl:1: `a` {message}"):
        load_problems(f"{path}?question=q&answer=a")
    with pytest.raises(TreeDataError, match=f"t.jsonl:1: 'answer' {message}"):
        list(read_traces([str(traces(tmp_path, f'"answer": {value}'))]))


@pytest.mark.parametrize(("written", "reward"), [("true", 1.0), ("false", 0.0), ("0.75", 0.75), ("1", 1.0)])
def test_a_reward_is_a_number_or_a_truth(tmp_path: Path, written: str, reward: float) -> None:
    trace = only_trace(traces(tmp_path, f'"reward": {written}, "id": 7'))
    assert (trace.reward, trace.id) == (reward, "7")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('"reward": "1"', r"'reward' is the text '1'; give a number \(without quotes\)"),
        ('"reward": NaN', "'reward' is NaN; it must be finite"),
        ('"reward": [1]', "'reward' is a list of 1; give a number"),
        ('"steps": "a\\n\\nb"', "'steps' is one text; give a list of texts, a step each"),
        ('"steps": ["a", ""]', "'steps' has an empty text at index 1; leave it out"),
        ('"steps": ["a", null]', "'steps' has null at index 1; give texts alone"),
        ('"steps": ["a", "b\\ude00"]', r"'steps' holds half a character \(\\ude00, at 1\)"),
        ('"id": false', "'id' is false; give a text or a number"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(tmp_path: Path, fields: str, message: str) -> None:
    with pytest.raises(TreeDataError, match=f"t.jsonl:1: {message}"):
        list(read_traces([str(traces(tmp_path, fields))]))


def test_two_rewards_of_one_trace_name_both_lines_and_a_way_out(tmp_path: Path) -> None:
    path = traces(tmp_path, '"reward": 0.75', '"id": "other"', '"reward": 1.0')
    found = [(where, trace_of(row)) for where, row in file_rows(path)]
    with pytest.raises(
        TreeDataError, match=r":3: .* 1.0 here and 0.75 at .*:1; give both their mean, one another id, or rewards"
    ):
        trees_from_traces(found, "\n\n", saved(tmp_path / "tokenizer", byte_level()))


def test_an_id_and_a_prompt_that_are_null_are_absent(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"question": ["x"], "answer": [3.0], "steps": [["3"]], "reward": [1.0]})
    without = only_trace(path)
    null = only_trace(traces(tmp_path, '"id": null, "prompt": null, "steps": ["3"]'))
    assert without == null


def test_a_directory_of_shards_is_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for shard in (10, 9, 0):
        (tmp_path / f"train-{shard}-of-11.jsonl").write_text(lines([{"q": f"x{shard}", "a": "1"}]))
    (tmp_path / "README.md").write_text("not a shard")
    (tmp_path / ".hidden.jsonl").write_text("{")
    for name in (tmp_path, tmp_path / "train-*.jsonl", tmp_path / "train-[0-9]*"):
        found = load_problems(f"{name}?question=q&answer=a")
        assert [problem.question for problem in found] == ["x0", "x9", "x10"]
    assert [problem.question for problem in load_problems(f"{tmp_path}/train-*?question=q&answer=a[1:2]")] == ["x9"]


def test_a_directory_with_files_of_several_names_is_not_mixed(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        (tmp_path / f"{name}.jsonl").write_text(lines(ROWS))
    with pytest.raises(ProblemError, match=r"not shards of one set \(test-\*.jsonl, train-\*.jsonl\); say which"):
        load_problems(f"{tmp_path}{COLUMNS}")


@pytest.mark.parametrize(
    ("mark", "message"),
    [("zarr.json", "is a tree store"), ("dataset_info.json", "to_parquet"), ("adapter_config.json", "is an adapter")],
)
def test_a_directory_that_is_something_else_is_named(tmp_path: Path, mark: str, message: str) -> None:
    (tmp_path / mark).write_text("{}")
    with pytest.raises(ProblemError, match=message):
        load_problems(str(tmp_path))


# Textualize/rich#2636's kind of name
def test_a_file_with_brackets_in_its_name_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "p[1].jsonl").write_text(lines(ROWS))
    (tmp_path / "p1.jsonl").write_text("{")
    assert find_files(str(tmp_path / "p[1].jsonl")) == [tmp_path / "p[1].jsonl"]
    assert problems(tmp_path / "p[1].jsonl") == EXPECTED
    (tmp_path / "p[1].jsonl").unlink()
    assert find_files(str(tmp_path / "p[1].jsonl")) == [tmp_path / "p1.jsonl"]
    assert find_files(str(tmp_path / "p[2].jsonl")) == []


@pytest.mark.parametrize("make", [int, float, decimal.Decimal])
def test_a_whole_number_is_written_alike_whatever_its_type(make: Callable[[str], Any]) -> None:
    assert number_text(make("1200")) == "1200"


@given(
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers()
    | st.decimals(allow_nan=False, allow_infinity=False, places=4)
)
def test_a_number_in_full_is_that_number_and_states_no_exponent(number: float | int | decimal.Decimal) -> None:
    text = number_text(number)
    assert decimal.Decimal(text) == decimal.Decimal(str(number))
    assert set(text) <= set("-.0123456789")
    assert not text.endswith(".0")


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_any_text_is_read_as_it_was_written(texts: list[str], encoding: str) -> None:
    rows = [{"q": text, "a": text} for text in texts]
    with TemporaryDirectory() as folder:
        bare, ours, table = (Path(folder) / name for name in ("bare.jsonl", "ours.jsonl", "table.csv"))
        bare.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding))
        ours.write_bytes("".join(map(json_line, rows)).encode(encoding))
        with table.open("w", encoding=encoding, newline="") as file:
            csv.writer(file).writerows([["q", "a"], *(list(row.values()) for row in rows)])
        assert [row for _, row in file_rows(bare)] == rows
        assert [row for _, row in file_rows(ours)] == rows
        if not set("\r\0") & set("".join(texts)):  # carriage returns in cells become new lines
            assert [row for _, row in file_rows(table)] == [row for row in rows if any(row.values())]
