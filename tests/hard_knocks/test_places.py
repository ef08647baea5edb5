"""Places: a store named by URL, a home directory, a name that was relative to a directory left since.

Sources: syne-tune/syne-tune#232, dssg/triage#461, liormizr/s3path#200 (pathlib folds the // of a URL).
"""

import json
from dataclasses import replace
from functools import partial, reduce
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
from treeopo_storage import (
    NotAStoreError,
    create_store,
    new_store,
    open_store,
    store_exists,
)
from treeopo_storage.conformance import random_tree
from treeopo_storage.errors import StoreAccessError
from treeopo_storage.places import parse_place
from zarr.storage import FsspecStore

from tests.conftest import WORLD
from tests.hard_knocks.commands import META, invoke
from tests.tiny_models import random_qwen2
from treeopo.config import BuildConfig, EvalConfig, Section, TrainConfig, load_config
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError
from treeopo.jobs.build import build_store
from treeopo.places import kind_of
from treeopo.settings_reference import CONFIGS, command_settings


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


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
