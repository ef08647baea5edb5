"""Places: a store named by URL, a home directory, a name that was relative to a directory left since.

Sources: syne-tune/syne-tune#232, dssg/triage#461, liormizr/s3path#200 (pathlib folds the // of a URL).
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, reduce
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
from treeopo_cli.main import app
from treeopo_storage import (
    NotAStoreError,
    StoreExistsError,
    StoreMeta,
    TreeDataError,
    TreeStore,
    TreeWriter,
    create_store,
    new_store,
    open_store,
    open_writer,
    store_exists,
)
from treeopo_storage.conformance import random_tree
from treeopo_storage.errors import StoreAccessError, StoreError
from treeopo_storage.places import parse_place
from treeopo_storage.retokenize import retokenize, retokenized_meta
from treeopo_storage.verify import verify_store
from typer.testing import CliRunner
from zarr.storage import FsspecStore

from tests.conftest import WORLD
from tests.tiny_models import random_qwen2
from treeopo.config import BuildConfig, EvalConfig, Section, TrainConfig, load_config
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError, RunError, TreeopoError
from treeopo.jobs.build import build_store
from treeopo.jobs.evaluate import evaluate
from treeopo.jobs.train import train
from treeopo.places import kind_of
from treeopo.run.directory import RunDirectory
from treeopo.run.models import resolve
from treeopo.run.resume import resume_run
from treeopo.settings_reference import CONFIGS, command_settings

META = StoreMeta("0123456789abcdef", "teacher")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def invoke(*arguments: object) -> str:
    """The command's output, or what its one line says if it is refused."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is None:
        return result.output
    assert isinstance(result.exception, TreeopoError | StoreError), result.exception
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("t.zarr", Path("t.zarr")),
        ("/data/t.zarr", Path("/data/t.zarr")),
        ("file:///data/t.zarr", Path("/data/t.zarr")),
        ("file:/data/t.zarr", Path("/data/t.zarr")),  # RFC 8089, and what pathlib makes of the one above
        ("file://localhost/data/t.zarr", Path("/data/t.zarr")),
        ("file:///data/with%20space.zarr", Path("/data/with space.zarr")),
        ("file:///data/with space.zarr", Path("/data/with space.zarr")),
        ("local:///data/t.zarr", Path("/data/t.zarr")),
        ("a%20b.zarr", Path("a%20b.zarr")),  # no URL: a name as it is
        ("s3://b/t.zarr", "s3://b/t.zarr"),
        ("memory://x/t.zarr", "memory://x/t.zarr"),
        ("simplecache::s3://b/t.zarr", "simplecache::s3://b/t.zarr"),
        ("C:/t.zarr", Path("C:/t.zarr")),
        ("odd:name.zarr", Path("odd:name.zarr")),
        ("~/t.zarr", Path.home() / "t.zarr"),
    ],
)
def test_a_place_is_a_local_path_or_a_url(place: str, expected: Path | str) -> None:
    found = parse_place(place)
    assert found == expected
    assert type(found) is type(expected) or isinstance(found, Path)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (Path("s3://b/t.zarr"), "is that the URL s3://b/t.zarr, as pathlib writes it"),
        ("memory:/x/t.zarr", "is that the URL memory://x/t.zarr"),
        ("file://elsewhere/t.zarr", "a file URL names an absolute path and no other host"),
        ("file://t.zarr", "a file URL names an absolute path and no other host"),
        ("~nobody-of-that-name/t.zarr", "no such home directory"),
    ],
)
def test_a_place_that_would_become_a_local_name_is_refused(at: Path, place: Path | str, expected: str) -> None:
    for use in (open_store, store_exists, lambda place: create_store(place, META)):
        with pytest.raises(NotAStoreError, match=expected):
            use(place)
    assert not list(at.iterdir())


@pytest.mark.parametrize("kind", [TrainConfig, BuildConfig])
def test_a_url_in_a_setting_stays_one(at: Path, kind: type[TrainConfig] | type[BuildConfig]) -> None:
    name = "store" if kind is TrainConfig else "output"
    (at / "c.toml").write_text(f'{name} = "s3://b/t.zarr"\n')
    by_file, by_flag = (
        load_config(kind, file=at / "c.toml", flags={}),
        load_config(kind, file=None, flags={name: "s3://b/t.zarr"}),
    )
    for config in (by_file, by_flag, kind.model_validate(by_flag.model_dump(mode="json"))):
        assert getattr(config, name) == "s3://b/t.zarr"
    with pytest.raises(ConfigError, match=f"{name}: .*is that the URL"):
        load_config(kind, file=None, flags={name: Path("s3://b/t.zarr")})


def test_every_command_reads_a_store_by_its_file_url(at: Path) -> None:
    with new_store(at / "my store.zarr", META) as writer:
        writer.append([random_tree("p", 1)])
    url = f"file://{at}/my%20store.zarr"
    assert "is whole: 1 problems" in invoke("store", "verify", url)
    assert "teacher" in invoke("store", "info", url)
    assert "teacher: teacher" in invoke("inspect-tree", url)
    assert "[bold]" not in invoke("inspect-tree", url, "--problem", "0")
    assert "rows written" in invoke("store", "export", url, "rows.jsonl")
    invoke("store", "merge", url, "-o", f"file://{at}/merged.zarr")
    assert open_store("merged.zarr").problem_count == 1
    student = random_qwen2(at / "student")
    assert "the store's tokens are of tokenizer" in invoke("train", url, "--student", student)
    assert {path.name for path in at.iterdir()} == {"my store.zarr", "merged.zarr", "rows.jsonl", "student"}


def test_a_new_store_that_would_go_with_the_command_is_refused(at: Path) -> None:
    create_store("t.zarr", META)
    for arguments in (["mcts", "build"], ["store", "merge", "t.zarr"]):
        assert "memory://x: goes with the process that writes it" in invoke(*arguments, "-o", "memory://x")


def test_where_nothing_can_be_written_is_said_in_a_line(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_store("t.zarr", META)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(at)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert "settings" in invoke("inspect-tree", f"{url}/t.zarr")
        assert "cannot create the store: 501" in invoke("store", "merge", "t.zarr", "-o", f"{url}/new.zarr")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [path.name for path in at.iterdir()] == ["t.zarr"]

    async def read_only(*arguments: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(FsspecStore, "set", read_only)
    with pytest.raises(StoreAccessError, match="cannot create the store: there is no writing at such a URL"):
        create_store(f"memory://{uuid4().hex}/t.zarr", META)


def test_train_says_what_is_not_at_a_url(at: Path) -> None:
    student = random_qwen2(at / "student")
    assert "memory://x/t.zarr is not a tree store" in invoke("train", "memory://x/t.zarr", "--student", student)
    assert "nosuch" in invoke("train", "nosuch://x/t.zarr", "--student", student)
    assert [path.name for path in at.iterdir()] == ["student"]


@pytest.mark.parametrize("place", ["file://{}/b%20c.zarr", "memory://{}/b.zarr"])
def test_a_search_is_written_to_its_url_and_goes_on_there(at: Path, place: str) -> None:
    random_qwen2(at / "teacher")
    (at / "p.jsonl").write_text("".join(f'{{"question": "{name}?", "answer": "#### 1"}}\n' for name in "abc"))
    url = place.format(at if place.startswith("file") else uuid4().hex)
    flags = {"output": url, "teacher": "teacher", "problems": "p.jsonl", "search.rollouts": 2, "search.depth": 2}

    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return ScriptedEngine(WORLD, ModelTokenizer(model))

    for limit in (1, 3):
        config = load_config(BuildConfig, file=None, flags={**flags, "limit": limit})
        report = build_store(config, lambda notice: None, lambda *progress: None, start_engine)
        assert report.problems == limit
    assert open_store(url).problem_count == 3
    here = {"teacher", "p.jsonl"} | ({"b c.zarr"} if place.startswith("file") else set())
    assert {path.name for path in at.iterdir()} == here


def zipped(path: Path) -> None:
    shutil.make_archive("t.zarr", "zip", base_dir="t.zarr")
    shutil.move("t.zarr.zip", path)


def tarred(path: Path) -> None:
    shutil.move(shutil.make_archive("t", "tar", base_dir="t.zarr"), path)


def tarred_and_packed(path: Path) -> None:
    shutil.move(shutil.make_archive("t", "gztar", base_dir="t.zarr"), path)


def without_its_root(path: Path) -> None:
    shutil.copytree("t.zarr", path)
    (path / "zarr.json").unlink()


def without_its_tokens(path: Path) -> None:
    shutil.copytree("t.zarr", path)
    shutil.rmtree(path / "tokens")


def cut_short(path: Path) -> None:
    shutil.copytree("t.zarr", path)
    os.truncate(path / "tokens" / "id" / "c" / "0", 100)


def one_level_down(path: Path) -> None:
    shutil.copytree("t.zarr", path / "t.zarr")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (zipped, r"s\.zarr is not a tree store but a zip archive; unpack it, or read it as zip://NAME\.zarr::s\.zarr"),
        (tarred, r"s\.zarr is not a tree store but a tar archive; unpack it"),
        (tarred_and_packed, r"s\.zarr is not a tree store but a gzip archive; unpack it"),
        (without_its_root, r"s\.zarr is part of a tree store: its zarr\.json is missing; copy the store again"),
        (without_its_tokens, r"s\.zarr: array tokens/id is missing or unreadable; restore it from a copy"),
        (cut_short, r"s\.zarr: tokens/id row 0: its chunk tokens/id/c/0 has 100 bytes instead of .*; restore it"),
        (one_level_down, r"s\.zarr is not a tree store but holds s\.zarr/t\.zarr; give that"),
        (Path.touch, r"s\.zarr is not a tree store but a file, and a store is a directory"),
        (Path.mkdir, r"s\.zarr is not a tree store but an empty directory"),
        (lambda path: None, r"there is no tree store at s\.zarr"),
    ],
)
def test_what_is_no_whole_store_says_what_it_is(at: Path, make: Callable[[Path], object], expected: str) -> None:
    with new_store("t.zarr", META) as writer:
        writer.append([random_tree("p", 1)])
    make(Path("s.zarr"))
    with pytest.raises(StoreError, match=expected) as error:
        verify_store("s.zarr")
    assert "\n" not in str(error.value)


def test_a_zipped_store_is_read_where_it_is(at: Path) -> None:
    with new_store("t.zarr", META) as writer:
        writer.append([random_tree("p", 1)])
    zipped(at / "packed.zip")
    assert verify_store("zip://t.zarr::packed.zip").problem_count == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_store_that_cannot_be_written_is_read_and_refused_in_a_line(
    at: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_store("t.zarr", META) as writer:
        writer.append([random_tree("p", 1)])
    opened = os.open

    def read_only(path: str, flags: int, *arguments: Any, **more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(number, os.strerror(number))
        return opened(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", read_only)
    assert verify_store("t.zarr").problem_count == 1
    for arguments in (["store", "merge", "t.zarr", "-o", "new.zarr"],):
        assert "new.zarr: " in (line := invoke(*arguments))
        assert "cannot create the store" in line
    with pytest.raises(StoreAccessError, match=r"t\.zarr: .*cannot write to the store"):
        open_writer("t.zarr")


def fill(writer: TreeWriter) -> None:
    """The second of these is refused."""
    writer.append([random_tree("p", 1)])
    writer.append([random_tree("p", 1)])


def test_a_store_that_could_not_be_filled_is_not_there(at: Path) -> None:
    for place in ("t.zarr", f"memory://{uuid4().hex}/t.zarr"):
        with pytest.raises(TreeDataError), new_store(place, META) as writer:
            fill(writer)
        assert not store_exists(place)
    assert not list(at.iterdir())
    create_store("t.zarr", META)
    with pytest.raises(StoreExistsError):
        new_store("t.zarr", META).__enter__()
    assert os.listdir(at) == ["t.zarr"]


# facebookresearch/hydra#922, sony/nnabla-nas#57, azavea/raster-vision#756, MrNeRF/LichtFeld-Studio#599
class Stopped(Exception):  # noqa: N818
    pass


def stop_at_2(step: int, metrics: Mapping[str, float]) -> None:
    if step == 2:
        raise Stopped


def go_on(run: RunDirectory) -> bool:
    return train(run, lambda notice: None, lambda step, metrics: None).complete


@pytest.fixture
def here(searched_store: TreeStore, at: Path) -> Path:
    """The working directory. In `a` are a store, a student and a run that was started there by relative names."""
    directory = at / "a"
    student = random_qwen2(directory / "tiny")
    tokenizer = ModelTokenizer(str(student))
    with new_store(
        directory / "trees.zarr",
        retokenized_meta(searched_store.meta, tokenizer.fingerprint, tokenizer.vocabulary_size),
    ) as writer:
        retokenize(searched_store, writer, tokenizer, tokenizer.eos_token_id)
    flags = {
        "store": "trees.zarr", "output": "run", "student": "./tiny", "method": "sft", "steps": 3,
        "checkpoint_every": 1, "rollout.batch_size": 8, "learner.lora.rank": 2,
    }  # fmt: skip
    with contextlib.chdir(directory):
        run = RunDirectory.create(load_config(TrainConfig, file=None, flags=flags))
        with pytest.raises(Stopped):
            train(run, lambda notice: None, stop_at_2)
    return at


def as_earlier_versions_wrote(run: Path) -> None:
    """Places as they were typed, and nothing that tells what they meant."""
    record = json.loads((run / "config.json").read_text())
    record["config"] |= {"store": "trees.zarr", "output": "run", "student": "./tiny"}
    (run / "config.json").write_text(json.dumps({"config": record["config"], "versions": record["versions"]}))
    for file in run.rglob("adapter_config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "./tiny"}))
    for sizes in run.rglob("files.json"):
        sizes.unlink()


@pytest.mark.parametrize("is_old", [False, True])
def test_a_run_goes_on_and_is_exported_from_another_directory(here: Path, is_old: bool) -> None:
    if is_old:
        as_earlier_versions_wrote(here / "a" / "run")
    random_qwen2(here / "tiny")  # of the same relative name, and not meant
    create_store("trees.zarr", META)
    for name in ("a/run", "a/run/checkpoints/step-000001/adapter"):
        assert resolve(name).base == str(here / "a" / "tiny")
    assert go_on(resume_run(Path("a/run"), file=None, flags={}))
    assert "merged model" in invoke("export", "a/run", "--merge", "m")
    assert (here / "m" / "model.safetensors").exists()
    assert resolve("a/run").base == resolve("a/run/adapter").base == str(here / "a" / "tiny")
    assert {path.name for path in here.iterdir()} == {"a", "m", "tiny", "trees.zarr"}


@pytest.mark.parametrize("is_old", [False, True])
def test_after_a_move_the_new_places_are_asked_for_by_name_and_kept(here: Path, is_old: bool) -> None:
    if is_old:
        as_earlier_versions_wrote(here / "a" / "run")
    shutil.move(here / "a" / "run", here / "moved")
    shutil.move(here / "a", here / "b")
    if is_old:  # here the old names mean something else
        random_qwen2(here / "tiny")
        create_store("trees.zarr", META)
    expected = "is relative to a directory that is not known" if is_old else "is not there any more"
    assert expected in (line := invoke("train", "--resume", "moved"))
    assert "moved: its store" in line
    assert "treeopo train STORE --resume moved" in line
    for use in (["train", "b/trees.zarr", "--resume", "moved"], ["export", "moved", "--merge", "m"]):
        assert expected in (line := invoke(*use))
        assert "moved: its student" in line
        assert "--student DIRECTORY" in line
    assert not (here / "m").exists()
    run = resume_run(Path("moved"), file=None, flags={"store": "b/trees.zarr", "student": "b/tiny"})
    assert go_on(run)
    assert not resume_run(Path("moved"), file=None, flags={}).changes
    assert resolve("moved").base == str(here / "b" / "tiny")


def test_another_store_than_the_runs_is_refused_also_at_its_place(here: Path) -> None:
    source = open_store("a/trees.zarr")
    with new_store("less.zarr", source.meta) as writer:
        writer.append(source.problems(0, 3))
    shutil.copytree("a/trees.zarr", "copy.zarr")
    with pytest.raises(RunError, match=r"store .*/less\.zarr: the run has .*/a/trees\.zarr and that is there"):
        resume_run(Path("a/run"), file=None, flags={"store": "less.zarr"}, labels={"store": "store"})
    assert resume_run(Path("a/run"), file=None, flags={"store": "copy.zarr"}).config.store == here / "copy.zarr"
    shutil.rmtree("a/trees.zarr")
    with pytest.raises(RunError, match="this store is not the one that the run began with"):
        go_on(resume_run(Path("a/run"), file=None, flags={"store": "less.zarr"}))
    shutil.move("less.zarr", "a/trees.zarr")
    with pytest.raises(RunError, match="this store is not the one that the run began with"):
        go_on(RunDirectory.open(Path("a/run")))


def test_a_name_on_the_hub_is_not_a_directory_that_came_to_be_called_so(here: Path) -> None:
    record = json.loads((here / "a" / "run" / "config.json").read_text())
    record["config"]["student"] = "org/tiny"
    (here / "a" / "run" / "config.json").write_text(json.dumps(record))
    assert resolve("a/run").base == str(here / "a" / "tiny")  # by the adapter
    shutil.copytree("a/tiny", "org/tiny")
    with pytest.raises(RunError, match=r"student 'org/tiny' is relative to a directory that is not known"):
        go_on(RunDirectory.open(Path("a/run")))


def test_what_a_run_reads_beside_its_store_is_kept_absolute_too(at: Path) -> None:
    (at / "held.jsonl").write_text('{"question": "1?", "answer": "#### 1"}\n')
    flags = {"output": "run", "evaluation.problems": "held.jsonl?question=question&answer=answer[:1]"}
    config = RunDirectory.create(load_config(TrainConfig, file=None, flags=flags)).config
    assert config.evaluation.problems == f"{at}/held.jsonl?question=question&answer=answer[:1]"
    flags = {"output": "run", "evaluation.problems": "gsm8k:test[:3]", "student": "org/no-directory"}
    config = RunDirectory.create(load_config(TrainConfig, file=None, flags=flags)).config
    assert (config.evaluation.problems, config.student) == ("gsm8k:test[:3]", "org/no-directory")
    assert config.output == Path("run")


def test_an_evaluation_goes_on_only_with_the_model_it_began_with_whatever_it_is_called_here(at: Path) -> None:
    for name in ("a", "b"):
        random_qwen2(at / name / "tiny")
        (at / name / "p.jsonl").write_text('{"question": "1?", "answer": "#### 1"}\n')

    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return ScriptedEngine(WORLD, ModelTokenizer(model))

    def evaluated() -> None:
        flags = {"model": "./tiny", "problems": ["p.jsonl"], "output": at / "out", "max_new_tokens": 8}
        config = load_config(EvalConfig, file=None, flags=flags)
        evaluate(config, lambda notice: None, lambda done, total: None, start_engine)

    with contextlib.chdir("a"):
        evaluated()
        evaluated()
    with contextlib.chdir("b"), pytest.raises(RunError, match="holds an evaluation with other settings"):
        evaluated()
    asked = json.loads((at / "out" / "evaluation.json").read_text())
    assert (asked["model"], asked["problems"]) == (f"{at}/a/tiny", [f"{at}/a/p.jsonl"])
    earlier = {**asked, "model": "./tiny", "problems": ["p.jsonl"]}
    del earlier["weights"]
    (at / "out" / "evaluation.json").write_text(json.dumps(earlier))
    with contextlib.chdir("a"):
        evaluated()


def test_a_build_goes_on_only_with_the_teacher_and_the_problems_it_began_with(at: Path) -> None:
    for name in ("a", "b"):
        random_qwen2(at / name / "teacher")
        (at / name / "p.jsonl").write_text('{"question": "1?", "answer": "#### 1"}\n')
    flags = {"output": at / "t.zarr", "teacher": "teacher", "problems": "p.jsonl", "search.rollouts": 2}

    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return ScriptedEngine(WORLD, ModelTokenizer(model))

    def build() -> None:
        config = load_config(BuildConfig, file=None, flags=flags)
        build_store(config, lambda notice: None, lambda *progress: None, start_engine)

    with contextlib.chdir("a"):
        build()
        build()
    with contextlib.chdir("b"), pytest.raises(RunError, match="built with other settings"):
        build()
    meta = open_store("t.zarr").meta
    assert (meta.teacher, meta.search["problems"]) == (f"{at}/a/teacher", f"{at}/a/p.jsonl")
    with new_store("earlier.zarr", replace(meta, teacher="teacher", search={**meta.search, "problems": "p.jsonl"})):
        flags["output"] = at / "earlier.zarr"
    with contextlib.chdir("a"):
        build()


# hyperopt/hyperopt#72, pimutils/vdirsyncer#32, domainaware/parsedmarc#485, ulyssa/iamb#244
@pytest.mark.parametrize("kind", [TrainConfig, BuildConfig, EvalConfig])
def test_every_setting_that_names_a_place_knows_home(
    at: Path, kind: type[Section], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(at / "home"))
    command = next(name for name, config in CONFIGS.items() if config is kind)
    places = {row.name for row in command_settings(command) if kind_of(row.name) is not None}
    assert places >= {row.name for row in command_settings(command) if "path" in row.kind}
    if kind is TrainConfig:
        places -= {"solutions.problems", "solutions.prompt.examples", "solutions.prompt.template"}  # without a store
    flags: dict[str, Any] = {name: ["~/x"] if kind is EvalConfig and name == "problems" else "~/x" for name in places}
    flags |= {"method": "tree-opo-kl"} if kind is TrainConfig else {"prompt.shots": 1}
    flags |= {"search.actions": ["step", "rephrase"]} if kind is BuildConfig else {}
    lines = [f"{name} = {json.dumps(value)}" for name, value in flags.items()]
    (at / "c.toml").write_text("\n".join(sorted(lines, key=lambda line: "." in line)))
    for config in (load_config(kind, file=at / "c.toml", flags={}), load_config(kind, file=None, flags=flags)):
        for name in places:
            found: Any = reduce(getattr, name.split("."), config)
            assert str(found[0] if isinstance(found, tuple) else found) == f"{at}/home/x", name


def test_no_command_makes_a_directory_called_tilde(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(at / "home"))
    words = ModelTokenizer(str(random_qwen2(at / "home" / "tiny")))
    create_store(at / "home" / "t.zarr", replace(META, tokenizer_fingerprint=words.fingerprint))
    assert "problems merged" in invoke("store", "merge", "~/t.zarr", "--output=~/m.zarr")
    assert "holds no committed problem" in invoke("store", "verify", "~/m.zarr")
    assert "nothing to export" in invoke("store", "export", "~/m.zarr", "~/rows.jsonl")
    assert f"there is no tree store at {at}/home/no.zarr" in invoke("train", "~/no.zarr", "--student=~/tiny")
    assert "holds no" in invoke("train", "~/t.zarr", "--student=~/tiny", "--output=~/run")
    assert f"{at}/home/run: no run there" in invoke("train", "--resume=~/run")
    assert f"{at}/home/c.toml: cannot be read" in invoke("train", "--config=~/c.toml")
    assert f"{at}/home/run: no run there" in invoke("export", "~/run", "--merge=~/merged")
    assert "By depth" in invoke("inspect-tree", "~/t.zarr", "--tokenizer=~/tiny")
    assert "r.zarr" in invoke("store", "retokenize", "~/t.zarr", "--output=~/r.zarr", "--tokenizer=~/tiny")
    assert {path.name for path in at.iterdir()} == {"home"}
    assert {path.name for path in (at / "home").iterdir()} == {"tiny", "t.zarr", "m.zarr", "r.zarr"}
