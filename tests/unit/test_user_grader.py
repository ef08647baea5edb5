"""A grader of a user's own may raise, hang, die, print or return nonsense: nothing hangs, and all of it is counted."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from treeopo_cli.main import app
from typer.testing import CliRunner

from treeopo.errors import ConfigError, GraderError
from treeopo.problems.graders import OpenGrader, has_quick, load_grader, open_grader
from treeopo.problems.graders.number import NumberGrader
from treeopo.problems.graders.opened import FAILURES_IN_A_ROW
from treeopo.problems.settings import GradingSettings
from treeopo.records import Problem

PROBLEM = Problem("p", "How many?", "72", "so\n\n#### 72")
NONE = {"grader/timeouts": 0.0, "grader/restarts": 0.0, "grader/errors": 0.0, "grader/unreadable_golds": 0.0}

MODULE = """
import os, sys, time
import numpy as np
from treeopo.problems.graders.number import NumberGrader

class Base:
    prompt_ending = "Say it."
    def parse_gold(self, text, *, worked):
        return text
    def answer(self, text):
        return eval(text)
    def grade(self, problem, text):
        return eval(text)

def shout():
    print("right")
    print('{"value": 0.9}', file=sys.stderr)
    os.write(1, b'{"value": 0.9}\\n')
    os.system("echo '{\\"value\\": 0.9}'")
    return 0.25

def orphan(path):
    import subprocess
    child = subprocess.Popen(["sleep", "600"])
    with open(path, "w") as file:
        file.write(str(child.pid))
    time.sleep(600)

class Quick(Base):
    def quick(self, problem, text):
        return None if text.startswith("1/0.5") else eval(text)

class Stricter(NumberGrader):
    def grade(self, problem, text):
        return 0.5

class Deaf:
    prompt_ending = 3
    def grade(self, problem, text):
        return 1.0

class Demanding(Base):
    def __init__(self, judge):
        self.judge = judge

class Waiting(Base):
    async def grade(self, problem, text):
        return 1.0

class AtHome(Base):
    def __init__(self):
        if sys.argv[0].endswith("worker.py"):
            raise OSError("no judge\\nhere")

class Unprepared(Base):
    def prepare(self, deadline_seconds):
        raise RuntimeError(f"{deadline_seconds} s are not enough")

made = Base()
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the working directory, as a user has it."""
    (tmp_path / "own_graders.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_graders", raising=False)
    load_grader.cache_clear()
    yield
    load_grader.cache_clear()


def opened(name: str = "Base", **settings: float) -> AbstractAsyncContextManager[OpenGrader]:
    return open_grader(f"own_graders:{name}", GradingSettings(workers=1, **settings))  # type: ignore[arg-type]


async def test_what_a_grader_returns_is_the_reward() -> None:
    async with opened() as grader:
        for text, reward in (("0.3", 0.3), ("1", 1.0), ("True", 1.0), ("False", 0.0), ("np.float32(0.5)", 0.5)):
            assert await grader(PROBLEM, text) == reward
        assert await grader(PROBLEM, "np.bool_(True)") == 1.0
        assert await grader(PROBLEM, "len(problem.solution) / 100 if problem.answer == '72' else 0") == 0.11
        assert grader.take_counts() == NONE


async def test_one_that_raises_is_worth_0_counted_and_said_once_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with opened() as grader:
            assert await grader(PROBLEM, r"int('seven\neight')") == 0.0
            assert await grader(PROBLEM, "problem.colour") == 0.0
            assert await grader(PROBLEM, "1") == 1.0
            assert grader.take_counts() == {**NONE, "grader/errors": 2.0}
            assert grader.take_counts() == NONE
    (record,) = [record for record in caplog.records if record.name.startswith("treeopo")]
    assert "own_graders:Base: it raised ValueError: invalid literal for int()" in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("None", "it returned None, which is no number in [0, 1]"),
        ("'yes'", "it returned 'yes'"),
        ("7", "it returned 7,"),
        ("float('nan')", "it returned nan"),
        ("-0.1", "it returned -0.1"),
        ("float('inf')", "it returned inf"),
        ("[1]", "it returned [1]"),
        ("np.ones(2)", "it returned array([1., 1.])"),
        ("'a' * 10**6", "..., which is no number"),
    ],
)
async def test_what_is_no_number_from_0_to_1_is_an_error_that_says_so(
    text: str, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with opened() as grader:
            assert await grader(PROBLEM, text) == 0.0
            assert grader.take_counts() == {**NONE, "grader/errors": 1.0}
            assert await grader(PROBLEM, "0.5") == 0.5
    assert complaint in caplog.text


async def test_a_grader_that_always_fails_ends_the_run_in_one_line() -> None:
    async with opened() as grader:
        for _ in range(FAILURES_IN_A_ROW - 1):
            assert await grader(PROBLEM, "1 / 0") == 0.0
        with pytest.raises(GraderError) as caught:
            await grader(PROBLEM, "1 / 0")
    assert str(caught.value) == (
        "grader own_graders:Base failed 32 times in a row, the last time: it raised ZeroDivisionError: division by zero"
    )


async def test_one_reward_between_failures_starts_the_count_anew() -> None:
    async with opened() as grader:
        for round_ in range(2):
            for _ in range(FAILURES_IN_A_ROW - 1):
                assert await grader(PROBLEM, "None") == 0.0
            assert await grader(PROBLEM, "1") == 1.0, round_


async def test_one_that_hangs_is_killed_at_the_deadline_and_the_next_answer_is_graded() -> None:
    async with opened(deadline_seconds=0.4) as grader:
        assert await grader(PROBLEM, "time.sleep(600)") == 0.0
        assert grader.take_counts() == {**NONE, "grader/timeouts": 1.0, "grader/restarts": 1.0}
        assert await grader(PROBLEM, "0.3") == 0.3


async def test_what_a_hanging_grader_started_is_killed_with_it(tmp_path: Path) -> None:
    async with opened(deadline_seconds=1.0) as grader:
        assert await grader(PROBLEM, f"orphan({str(tmp_path / 'pid')!r})") == 0.0
        pid = int((tmp_path / "pid").read_text())
        assert await grader(PROBLEM, "1") == 1.0
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
            break
        time.sleep(0.05)
    else:
        os.kill(pid, 9)
        raise AssertionError("the grader's child outlived it")


@pytest.mark.parametrize("text", ["os._exit(0)", "sys.exit('bye')", "os.kill(os.getpid(), 9)", "bytearray(3 << 30)"])
async def test_one_that_kills_its_process_is_worth_0_and_replaced(text: str) -> None:
    async with opened(deadline_seconds=60) as grader:
        assert await grader(PROBLEM, text) == 0.0
        assert grader.take_counts() == {**NONE, "grader/restarts": 1.0}
        assert await grader(PROBLEM, "0.3") == 0.3


async def test_what_a_grader_prints_or_reads_is_no_part_of_the_protocol() -> None:
    async with opened(deadline_seconds=60) as grader:
        assert await grader(PROBLEM, "shout()") == 0.25
        assert await grader(PROBLEM, "len(sys.stdin.read())") == 0.0
        assert await grader(PROBLEM, "os.system('cat > /dev/null')") == 0.0
        assert await grader(PROBLEM, "1") == 1.0
        assert grader.take_counts() == NONE


async def test_its_answers_are_read_in_the_same_process_and_guarded_alike() -> None:
    async with opened(deadline_seconds=0.5) as grader:
        assert await grader.answer("'7' + '2'") == "72"
        assert await grader.answer("'\\ud83e'") == "?"  # half a character, which no file can hold
        for text in ("1 / 0", "72", "None", "'7' * 10000", "time.sleep(600)"):
            assert await grader.answer(text) == ""
        assert await grader.answer("'again'") == "again"
        assert grader.take_counts() == {
            **NONE,
            "grader/timeouts": 1.0,
            "grader/restarts": 1.0,
            "grader/errors": 4.0,
        }


async def test_quick_is_settled_here_and_starts_no_process() -> None:
    async with opened("Quick") as grader:
        assert await grader(PROBLEM, "0.3") == 0.3
        assert await grader(PROBLEM, "1 / 0") == await grader(PROBLEM, "7") == 0.0
        assert grader.take_counts() == {**NONE, "grader/errors": 2.0}
        assert not grader._pool._workers
        assert await grader(PROBLEM, "1/0.5 - 1") == 1.0
        assert grader._pool._workers


async def test_a_grade_of_its_own_is_not_settled_by_an_inherited_quick() -> None:
    assert has_quick(NumberGrader())
    assert not has_quick(load_grader("own_graders:Stricter"))
    async with opened("Stricter") as grader:
        assert await grader(PROBLEM, "#### 72") == 0.5


async def test_a_failure_may_be_tried_again() -> None:
    settings = GradingSettings(workers=1, deadline_seconds=60, on_failure="retry", retries=2)
    async with open_grader("own_graders:Base", settings) as grader:
        assert await grader(PROBLEM, "os._exit(1)") == 0.0
        assert grader.take_counts() == {**NONE, "grader/restarts": 3.0}


async def test_rewards_between_0_and_1_are_refused_by_name_where_something_needs_0_or_1() -> None:
    refusing = open_grader("own_graders:Quick", GradingSettings(), binary_for="advantage.method optimistic")
    async with refusing as grader:
        assert await grader(PROBLEM, "1") == 1.0
        with pytest.raises(
            ConfigError,
            match=r"reward 0\.3 of grader own_graders:Quick: advantage\.method optimistic needs rewards of 0 or 1",
        ):
            await grader(PROBLEM, "0.3")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("AtHome", r"own_graders:AtHome cannot be used in a worker process \(ConfigError: .*OSError: no judge here\)"),
        ("Unprepared", r"own_graders:Unprepared cannot be used .*\(RuntimeError: 5.0 s are not enough\)"),
    ],
)
async def test_a_worker_that_cannot_have_the_grader_is_one_line_with_the_reason(name: str, complaint: str) -> None:
    async with opened(name) as grader:
        for _ in range(2):
            with pytest.raises(GraderError, match=complaint) as caught:
                await grader(PROBLEM, "1")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("own_graders:Deaf", r"grader own_graders:Deaf lacks parse_gold, answer, prompt_ending \(a text\)"),
        ("own_graders:Demanding", r"cannot be made without arguments \(TypeError: .*'judge'\)"),
        ("own_graders:Waiting", r"grade is async; write it plain"),
        ("own_graders:Nobody", r"module own_graders has no Nobody"),
        ("no_such_module:Grader", r"importing no_such_module failed \(ModuleNotFoundError"),
        ("luck", r"unknown grader 'luck'; use one of number, number-strict, math, .*or package.module:Name"),
    ],
)
async def test_a_grader_that_cannot_be_used_is_refused_before_anything_starts(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        async with open_grader(name, GradingSettings()):
            raise AssertionError("it was opened")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["mcts", "build", "--grader", "luck"],
            "grader is 'luck'; use one of number, number-strict, math",
        ),
        (["eval", "--grader", "luck"], "grader is 'luck'; use one of number"),
        (["train", "--grader", "luck"], "grader is 'luck'; use one of number"),
        (["mcts", "build", "--teacher", "none", "--grader", "own_graders:Deaf"], "own_graders:Deaf lacks parse_gold"),
        (["eval", "none", "--grader", "own_graders:Deaf"], "own_graders:Deaf lacks parse_gold"),
    ],
)
def test_a_command_refuses_it_in_one_line_before_anything_starts(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(app, [*arguments, "-o", "out"])
    assert isinstance(result.exception, ConfigError)
    assert complaint in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not Path("out").exists()


def test_a_class_is_made_and_an_object_taken_as_it_is() -> None:
    import own_graders  # type: ignore[import-not-found]

    assert load_grader("own_graders:made") is own_graders.made
    assert isinstance(load_grader("own_graders:Base"), own_graders.Base)


def test_a_name_that_cannot_be_one_is_refused_among_the_settings() -> None:
    with pytest.raises(ConfigError, match="grader is 'luck'; use one of number, number-strict, math"):
        GradingSettings(grader="luck")
    assert GradingSettings(grader="own_graders:Base").grader == "own_graders:Base"


@pytest.mark.parametrize("name", ["number", "number-strict", "math"])
def test_the_graders_that_ship_are_written_on_the_same_object(name: str) -> None:
    grader = load_grader(name)
    text = f"so \\boxed{{72}}\n\n{'' if name == 'math' else '#### 72'}"
    assert grader.answer(text) == grader.parse_gold(text, worked=True) == "72"
    assert grader.prompt_ending
    assert has_quick(grader)
    with pytest.raises(ValueError, match="does not end in"):
        grader.parse_gold("nothing", worked=True)
