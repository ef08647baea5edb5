"""What the documentation shows is true: its code runs, its commands and settings exist, its links lead somewhere."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from treeopo_cli.main import app
from treeopo_storage import TreeStore, create_store, open_writer

import treeopo
from tests.tiny_models import random_qwen2
from tests.unit.test_kept_rollouts import keep
from tests.unit.test_learner import SETTINGS, batch, policy
from treeopo.config import BuildConfig, EvalConfig, Section, TrainConfig, load_config
from treeopo.errors import ConfigError
from treeopo.learner.batch_file import write_batch
from treeopo.learner.learner import Learner
from treeopo.learner.losses.policy_gradient import PolicyGradient

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/*.md")]
)
SHELL = {"sh", "bash", "console"}
CONFIGS: list[type[Section]] = [TrainConfig, BuildConfig, EvalConfig]


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its page, the line of its first line (from 1), its language and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def tokens(page: Path) -> Iterator[Token]:
    """Of the page, inline ones too, in their order."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        yield token
        yield from token.children or ()


def blocks(*languages: str) -> list[Block]:
    return [
        Block(page, token.map[0] + 2, token.info.split()[0], token.content)
        for page in PAGES
        for token in tokens(page)
        if token.type == "fence" and token.map and token.info and token.info.split()[0] in languages
    ]


def inline_code(page: Path, pattern: str) -> list[str]:
    """The code in the sentences of a page that is of this form."""
    return [x.content for x in tokens(page) if x.type == "code_inline" and re.fullmatch(pattern, x.content)]


def name(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


# Python


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searched_store: TreeStore) -> Path:
    """A working directory with the store that the pages open."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)  # it would call home
    create_store(tmp_path / "trees.zarr", searched_store.meta)
    with open_writer(tmp_path / "trees.zarr") as writer:
        writer.append(list(searched_store.problems(0, searched_store.problem_count)))
    return tmp_path


def diverged_run(workplace: Path) -> dict[str, Any]:
    """What docs/corrections.md takes for granted: a run that diverged at step 42, and a learner over its adapter."""
    run = workplace / "runs" / "latest"
    checkpoint = run / "checkpoints" / "step-000042"
    checkpoint.mkdir(parents=True)
    model = random_qwen2(workplace / "model", layers=1)
    learner = Learner(policy(model), [PolicyGradient(SETTINGS)], SETTINGS, steps=99, temperature=1.0)
    learner.version = 42
    learner.save_state(checkpoint)
    write_batch(run / "diverged-batch-000042.npz", batch(42))
    return {"learner": learner}


def run_with_rollouts(workplace: Path) -> dict[str, Any]:
    """What docs/metrics.md takes for granted: a run that has kept its rollouts."""
    keep(workplace / "runs" / "latest" / "rollouts", steps=[1, 2])
    return {}


GIVEN = {"corrections.md": diverged_run, "metrics.md": run_with_rollouts}


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python")}), ids=name)
def test_the_python_of_a_page_runs_and_gives_what_its_comments_say(page: Path, workplace: Path) -> None:
    names = GIVEN.get(page.name, lambda _: {})(workplace)
    for block in blocks("python"):
        if block.page == page:
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
            for expression, shown in shown_values(block.text):
                np.testing.assert_allclose(eval(expression, names), shown, atol=6e-4, err_msg=f"{block}: {expression}")


def shown_values(code: str) -> Iterator[tuple[str, Any]]:
    """Lines that are an expression and a comment which starts with its value: `sum(x)  # 3.5`."""
    for line in code.splitlines():
        expression, _, comment = line.partition("#")
        value = re.match(r"\s*(\[.*?\]|-?\d[\d.]*)(?=\s\s|:|\s*$)", comment)
        if value and expression.strip() and "=" not in expression:
            yield expression.strip(), ast.literal_eval(value[1])


# Command lines


UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # click's, which newer versions of typer carry inside them
UNFINISHED = {"MissingParameter", "NoArgsIsHelpError", "BadOptionUsage"}  # as a sentence may leave a command


def complaint(words: list[str]) -> str | None:
    """Why the real command line refuses these words; None where it would start or asks for more. Nothing is run."""
    command = typer.main.get_command(app)
    silence(command)
    try:
        command.main(words, prog_name="treeopo", standalone_mode=False)
    except UsageError as error:
        return None if type(error).__name__ in UNFINISHED else str(error)
    return None


def silence(command: Any) -> None:
    """Have no command below this one do anything."""
    inner = getattr(command, "commands", {})
    for each in inner.values():
        silence(each)
    if not inner:
        command.callback = lambda **_: None


def commands(text: str) -> Iterator[list[str]]:
    """The command lines of a shell block, each as its words; variables set before a command are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words:
            yield words


@pytest.mark.parametrize("block", blocks(*SHELL), ids=str)
def test_every_command_of_a_shell_block_is_one_that_exists(block: Block) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, *words in commands(block.text):
        if program == "treeopo":
            assert complaint(words) is None, words
        elif program == "make":
            assert set(words) <= targets


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_in_a_sentence_exists_with_its_options(page: Path) -> None:
    for code in inline_code(page, r"treeopo [a-z-].*"):
        _, *words = shlex.split(code)
        assert complaint([word for word in words if word not in ("...", "…")]) is None, code


def test_a_command_or_an_option_that_does_not_exist_is_noticed() -> None:
    assert "No such command" in str(complaint(["search"]))
    assert "No such option" in str(complaint(["train", "--stepz", "3"]))


# Settings


def is_setting(path: list[str], kind: Any) -> bool:
    if isinstance(kind, type) and issubclass(kind, Section):
        known: dict[str, Any] = {key: field.annotation for key, field in kind.model_fields.items()}
    elif is_dataclass(kind):
        known = {field.name: field.type for field in fields(kind)}
    else:
        return False
    return path[0] in known and (len(path) == 1 or is_setting(path[1:], known[path[0]]))


SECTIONS = {key for kind in CONFIGS for key, field in kind.model_fields.items() if is_dataclass(field.annotation)}
STORED = {"search.problems", "search.grader"}  # what a store's metadata says of its search


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_every_setting_in_a_sentence_exists(page: Path) -> None:
    for code in inline_code(page, rf"(--set )?({'|'.join(sorted(SECTIONS))})\.[a-z_.]+(=.*)?"):
        setting = code.removeprefix("--set ").partition("=")[0].removesuffix("...")
        if setting not in STORED and not setting.endswith(".py"):
            assert any(is_setting(setting.split("."), kind) for kind in CONFIGS), code


def loads(text: str, path: Path) -> bool:
    """Whether the text is a settings file of at least one command."""
    path.write_text(text)
    refusals = []
    for kind in CONFIGS:
        try:
            load_config(kind, file=path, flags={} if kind is EvalConfig else {"output": "somewhere"})
        except ConfigError as error:
            refusals.append(str(error))
    return len(refusals) < len(CONFIGS) or pytest.fail("\n".join(refusals))


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_every_toml_block_is_a_settings_file(block: Block, tmp_path: Path) -> None:
    assert loads(block.text, tmp_path / "settings.toml")


@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/**/*.toml")), ids=name)
def test_every_example_of_a_settings_file_loads(file: Path, tmp_path: Path) -> None:
    assert loads(file.read_text(), tmp_path / "settings.toml")


@pytest.mark.parametrize("block", blocks("json", "jsonl"), ids=str)
def test_every_json_block_is_json_lines(block: Block) -> None:
    assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())


# Links and citation


def slug(heading: str) -> str:
    """The anchor that hosts make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(line.lstrip("#")) for line in page.read_text().splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    links = [str(token.attrs["href"]) for token in tokens(page) if token.type == "link_open"]
    for link in links:
        if not re.match(r"[a-z]+:", link):
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            assert target.exists(), link
            assert target.is_relative_to(ROOT), link
            assert not anchor or anchor in anchors(target), link


def test_the_citation_names_the_version_of_the_package_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == treeopo.__version__
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2509.09284"
    assert [author["family-names"] for author in paper["authors"]] == ["Huang", "Nguyen", "Zimmer"]
