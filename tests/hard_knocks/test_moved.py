"""Names that were relative to a directory left since, and what was moved: never another model or store in silence."""

import contextlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from treeopo_storage import (
    TreeStore,
    create_store,
    new_store,
    open_store,
)
from treeopo_storage.retokenize import retokenize, retokenized_meta

from tests.conftest import WORLD
from tests.hard_knocks.commands import META, invoke
from tests.tiny_models import random_qwen2
from treeopo.config import BuildConfig, EvalConfig, TrainConfig, load_config
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ModelError, RunError
from treeopo.jobs.build import build_store
from treeopo.jobs.evaluate import evaluate
from treeopo.jobs.train import train
from treeopo.run.directory import RunDirectory
from treeopo.run.models import resolve
from treeopo.run.resume import resume_run
from treeopo.run.settled import check_places


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


def test_a_relative_problem_file_of_an_earlier_version_is_not_looked_for_here(at: Path) -> None:
    (at / "held.jsonl").write_text('{"question": "1?", "answer": "#### 1"}\n')
    config = load_config(TrainConfig, file=None, flags={"output": "run", "evaluation.problems": "held.jsonl[:1]"})
    with pytest.raises(RunError, match=r"its evaluation\.problems 'held\.jsonl\[:1\]' is relative .* --set evaluation"):
        check_places(config, Path("moved"), frozenset({"evaluation.problems"}))
    for problems in (f"{at}/held.jsonl[:1]", "gsm8k:test[:3]", "my.module:rows"):
        known = load_config(TrainConfig, file=None, flags={"output": "run", "evaluation.problems": problems})
        check_places(known, Path("moved"), frozenset({"evaluation.problems"}))


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
        evaluate(config, lambda notice: None, lambda progress: None, start_engine)

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


@pytest.mark.parametrize("name", ["./tiny", "../tiny", "/scratch/gone", "a/b/tiny"])
def test_a_model_that_is_a_path_and_not_there_is_named_with_where_it_was_looked_for(at: Path, name: str) -> None:
    with pytest.raises(ModelError, match="there is no such directory") as error:
        ModelTokenizer(name)
    assert repr(name) in str(error.value)
    assert (f"seen from {at}" in str(error.value)) == (not name.startswith("/"))
