"""Grading LaTeX in processes that may hang, die or be killed: every answer gets its verdict, in bounded time.

The module shares one pool per event loop; no test asserts how long something took, only that it ended.
"""

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from treeopo.errors import ConfigError, GraderError
from treeopo.problems.graders import open_grader
from treeopo.problems.graders import pool as pool_module
from treeopo.problems.graders.pool import GradingPool
from treeopo.problems.settings import GradingSettings
from treeopo.records import Problem
from treeopo.tasks import gather_or_cancel

pytestmark = pytest.mark.processes

HALF = Problem("half", "?", r"\frac{1}{2}")
HANG = "9^{9^{9^9}} - x"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def verify(pool: GradingPool, gold: str, answer: str) -> bool:
    """What algebra says of two pieces of LaTeX; False too for what no worker could finish."""
    return bool((await pool.grade(Problem("p", "?", gold), f"\\boxed{{{answer}}}")).value == 1.0)


def workers(pool: GradingPool) -> list[Process]:
    return [worker for worker in pool._workers if worker.returncode is None]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[GradingPool]:
    made = GradingPool("math", GradingSettings(workers=1, deadline_seconds=2.5))
    yield made
    await made.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "answer",
    [
        "9" * 400,
        "9^9^9^9^9",
        "9^{9^{9^{9^9}}}",
        "(" * 250,
        "{" * 200 + "}" * 200,
        r"\frac{1}{" * 40 + "2" + "}" * 40,
        r"\sqrt{" * 60 + "x" + "}" * 60,
        "((((99999!)!)!)!)!",
        r"\sum_{n=1}^{10^{100}} \frac{1}{n^n}",
        r"\int_0^\infty \sin(x^x^x) e^{x^2} dx",
        r"\prod_{k=1}^{999999999} (x+k)",
        r"(x+y+z+w)^{99999}",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}^{10^{9}}",
        "\x00\x01\x02\x1b[31m\x7f",
        "\ud83e\udd14".encode("utf-16", "surrogatepass").decode("utf-16"),
        "\u202e\u0661\u0662",
        r"\text{" + "a" * 480 + "}",
        "\n" * 500,
        r"\\" * 250,
        "+".join("abcdefghij" * 20),
    ],
)
async def test_an_adversarial_answer_is_wrong_and_the_next_one_is_right(pool: GradingPool, answer: str) -> None:
    assert await verify(pool, r"\frac{1}{2}", answer) is False
    assert await verify(pool, r"\frac{1}{2}", "0.5") is True


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('touch {mark}')",
        "().__class__.__base__.__subclasses__()",
        "eval(compile('open(\"{mark}\",\"w\")','x','exec'))",
        r"\text{{__import__('os').system('touch {mark}')}}",
        r"f(__import__('pathlib').Path('{mark}').touch())",
        r"\operatorname{{exec}}(open('{mark}','w'))",
        "1+__import__('os').system('touch {mark}')",
        "lambda: open('{mark}', 'w')",
        "\"; import os; os.system('touch {mark}') #",
        '{{"gold": "x", "answer": "x"}}\n{{"gold": 1}}',
    ],
)
async def test_nothing_that_a_model_writes_is_run(pool: GradingPool, attack: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert await verify(pool, "2", attack.format(mark=mark)) is False
    assert not mark.exists()
    assert await verify(pool, "2", "4/2") is True


async def test_an_answer_that_hangs_is_killed_at_the_deadline_scored_0_and_counted() -> None:
    async with open_grader("math", GradingSettings(workers=2, deadline_seconds=0.4)) as grader:
        # below 1 s math-verify's own alarm (whole seconds) comes too late: only the pool's deadline can end this
        assert await grader(HALF, rf"\boxed{{{HANG}}}") == 0.0
        counts = {"grader/errors": 0.0, "grader/unreadable_golds": 0.0}
        assert grader.take_counts() == {**counts, "grader/timeouts": 1.0, "grader/restarts": 1.0}
        assert grader.take_counts() == {**counts, "grader/timeouts": 0.0, "grader/restarts": 0.0}
        assert await grader(HALF, r"\boxed{0.5}") == 1.0


async def test_one_stuck_answer_keeps_no_other_from_its_verdict() -> None:
    async with open_grader("math", GradingSettings(workers=2, deadline_seconds=30)) as grader:
        stuck = asyncio.create_task(grader(HALF, rf"\boxed{{{HANG}}}"))
        verdicts = await gather_or_cancel(grader(HALF, rf"\boxed{{\frac{{{n}}}{{{2 * n}}}}}") for n in range(2, 42))
        assert verdicts == [1.0] * 40
        assert not stuck.done()
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)


async def test_kill_9_under_load_loses_no_answer_where_failures_are_tried_again() -> None:
    pool = GradingPool("math", GradingSettings(workers=2, on_failure="retry", retries=8))
    try:

        async def one(n: int) -> bool:
            right = await verify(pool, rf"\frac{{{n}}}{{7}}", rf"\frac{{{2 * n}}}{{14}}")
            if n in (20, 50):
                for worker in workers(pool):
                    os.kill(worker.pid, signal.SIGKILL)
            return right

        assert await gather_or_cancel(one(n) for n in range(80)) == [True] * 80
        assert pool.restarts >= 2
        assert pool.timeouts == 0
    finally:
        await pool.close()


async def test_kill_9_between_two_answers_costs_neither() -> None:
    pool = GradingPool("math", GradingSettings(workers=1))
    try:
        assert await verify(pool, "2x", "x+x")
        (worker,) = workers(pool)
        os.kill(worker.pid, signal.SIGKILL)
        await worker.wait()
        assert await verify(pool, "3x", "x+x+x")
        assert pool.restarts == 1
    finally:
        await pool.close()


async def test_a_cancelled_answer_does_not_become_the_next_ones_verdict() -> None:
    pool = GradingPool("math", GradingSettings(workers=1, deadline_seconds=30))
    try:
        assert await verify(pool, "2x", "x+x")
        waiting = asyncio.create_task(verify(pool, "1", HANG))
        await asyncio.sleep(0.2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await verify(pool, "3x", "x+x+x")
    finally:
        await pool.close()


async def test_no_process_outlives_the_grader() -> None:
    async with open_grader("math", GradingSettings(workers=2)) as grader:
        await gather_or_cancel(grader(HALF, r"\boxed{x + 1}") for _ in range(2))
        pids = [worker.pid for worker in workers(grader._pool)]
        assert pids
        assert all(alive(pid) for pid in pids)
    assert not any(alive(pid) for pid in pids)


async def test_workers_die_with_their_parent_even_while_computing() -> None:
    code = (
        "import asyncio, os\n"
        "from treeopo.problems.graders.pool import GradingPool\n"
        "from treeopo.problems.settings import GradingSettings\n"
        "from treeopo.records import Problem\n"
        "async def main():\n"
        "    pool = GradingPool('math', GradingSettings(workers=1, deadline_seconds=60))\n"
        "    await pool.grade(Problem('', '', '2x'), r'\\boxed{x+x}')\n"
        "    print(next(iter(pool._workers)).pid, flush=True)\n"
        f"    await pool.grade(Problem('', '', '1'), r'\\boxed{{{HANG}}}')\n"
        "asyncio.run(main())\n"
    )
    import sys

    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    await parent.wait()
    for _ in range(100):
        if not alive(pid):
            break
        await asyncio.sleep(0.05)
    assert not alive(pid)


async def test_easy_answers_start_no_process() -> None:
    async with open_grader("math", GradingSettings()) as grader:
        for text in ("", "no answer", "x" * 10**6, r"\boxed{" + "9" * 10**6 + "}", r"\boxed{7", r"\boxed{}"):
            assert await grader(HALF, text) == 0.0
        assert await grader(HALF, r"so it is $\boxed{\dfrac{1}{2}}$.") == 1.0
        assert not workers(grader._pool)


async def test_a_worker_that_cannot_start_is_said_once_and_clearly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit(7)")
    monkeypatch.setattr(pool_module, "_SCRIPT", broken)
    async with open_grader("math", GradingSettings(workers=1)) as grader:
        for _ in range(2):
            with pytest.raises(GraderError, match=r"status 7, 3 times.*is math-verify installed"):
                await grader(HALF, r"\boxed{x}")


def worker_whose_verdict(tmp_path: Path, verdict: str) -> Path:
    """The real worker, with its limits and fences, around another comparison."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\nfrom treeopo.problems.graders import math, worker\nreal = math.math_verify\n"
        "def math_verify(alarm_seconds):\n    real(alarm_seconds)\n    import sympy\n"
        f"    return math.MathVerify(lambda gold, answer: {verdict}, lambda gold: True)\n"
        "math.math_verify = math_verify\nworker.main(**json.loads(sys.argv[1]))\n"
    )
    return script


@pytest.mark.parametrize(
    ("verdict", "restarts"),
    [
        ("bool(bytearray(3 << 30 if answer == 'bomb' else 1))", 1),  # over the limit of 2 GiB
        ("os.system('touch MARK') + 1 if answer == 'bomb' else True", 0),
        ("os.fork() + 1 if answer == 'bomb' else True", 0),
        ("eval('open(\"MARK\", \"w\")') if answer == 'bomb' else True", 0),
        ("sympy.sympify('__import__(\"os\").system(\"touch MARK\")') if answer == 'bomb' else True", 0),
        ("open('MARK', 'w').write('x' * 10**6) if answer == 'bomb' else True", 0),
        ("'nonsense' if answer == 'bomb' else True", 0),
        ("sys.exit(1) if answer == 'bomb' else True", 1),
    ],
)
async def test_whatever_gets_past_the_grammar_meets_the_fences_and_costs_one_worker_at_most(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verdict: str, restarts: int
) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setattr(pool_module, "_SCRIPT", worker_whose_verdict(tmp_path, verdict.replace("MARK", str(mark))))
    pool = GradingPool("math", GradingSettings(workers=1, deadline_seconds=30))
    try:
        assert await verify(pool, "x", "bomb") is False
        assert await verify(pool, "x", "y") is True
        assert (pool.restarts, pool.timeouts) == (restarts, 0)
        assert not mark.exists() or not mark.read_bytes()
    finally:
        await pool.close()


@pytest.mark.parametrize(
    "wrong",
    [{"workers": 0}, {"deadline_seconds": 0}, {"memory_mib": 1}, {"on_failure": "guess"}, {"retries": 0}],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        GradingSettings(**wrong)  # type: ignore[arg-type]
