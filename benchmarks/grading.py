"""What grading costs: GSM8K in this process, MATH in its pool, and one stuck answer among many.

    python benchmarks/grading.py [--gsm8k FILE] [--math FILE] [--answers 400] [--stuck-seconds 5]

GSM8K: the worked solutions of a file (or of staged-arithmetic), each graded against its own gold and the next one's, in
CPU time of one core. MATH: answers that algebra must settle, so that none is decided by its spelling alone; answers a
second with one and with two workers, and the time from asking to verdict, alone and while one worker hangs on an answer
until its deadline. The ratio of two workers to one needs two free cores.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from treeopo.problems import grade, load_problems
from treeopo.problems.graders.pool import GradingPool, Reply
from treeopo.problems.settings import GradingSettings
from treeopo.records import Problem
from treeopo.tasks import gather_or_cancel

GOAL = 50_000  # completions graded in a second of one core
STUCK = "9^{9^{9^9}} - x"


def gsm8k(problems: Sequence[Problem], rounds: int) -> float:
    """Completions graded per CPU second, the best of `rounds`."""
    pairs = [(problem, problems[(index + shift) % len(problems)].solution or "")
             for index, problem in enumerate(problems) for shift in (0, 1)]  # fmt: skip
    best = 0.0
    for _ in range(rounds):
        began = time.process_time()
        right = sum(grade(problem, text) for problem, text in pairs)
        best = max(best, len(pairs) / (time.process_time() - began))
        assert right >= len(problems), "a solution was graded wrong"
    return best


def algebra(golds: Sequence[str], count: int) -> list[tuple[str, str]]:
    """`count` pairs that no spelling settles: a gold, and the same plus zero."""
    return [(gold, f"{gold}+0") for gold in (golds[index % len(golds)] for index in range(count))]


async def verify(pool: GradingPool, gold: str, answer: str) -> Reply:
    return await pool.grade(Problem("", "", gold), f"\\boxed{{{answer}}}")


async def math(
    pairs: Sequence[tuple[str, str]], workers: int, stuck_seconds: float | None
) -> tuple[float, list[float]]:
    """Answers a second, and seconds from asking to verdict of each; one in flight for each worker that is not stuck."""
    pool = GradingPool("math", GradingSettings(workers=workers, deadline_seconds=stuck_seconds or 60))
    room = asyncio.Semaphore(workers - bool(stuck_seconds))
    latencies: list[float] = []

    async def one(gold: str, answer: str) -> None:
        async with room:
            began = time.perf_counter()
            await verify(pool, gold, answer)
            latencies.append(time.perf_counter() - began)

    try:
        await gather_or_cancel(
            verify(pool, "2x", f"x+x+{n}-{n}") for n in range(2 * workers)
        )  # every worker has started
        hang = asyncio.create_task(verify(pool, "1", STUCK)) if stuck_seconds else None
        await asyncio.sleep(0.1)
        began = time.perf_counter()
        await gather_or_cancel(one(*pair) for pair in pairs)
        seconds = time.perf_counter() - began
        if hang:
            assert (await hang).value is None
    finally:
        await pool.close()
    return len(pairs) / seconds, latencies


def row(name: str, rate: float, latencies: list[float]) -> str:
    quantiles = np.quantile(np.array(latencies) * 1e3, [0.5, 0.9, 0.99, 1.0])
    return f"| {name} | {rate:,.0f} | " + " | ".join(f"{value:,.1f}" for value in quantiles) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's test.jsonl; without it staged-arithmetic")
    parser.add_argument("--math", type=Path, help="MATH-500 as JSON Lines; without it polynomials of our own")
    parser.add_argument("--answers", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stuck-seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    rate = gsm8k(load_problems(str(arguments.gsm8k or "staged-arithmetic:test")), arguments.rounds)
    print(f"GSM8K: {rate:,.0f} completions/s on one core (goal {GOAL:,})\n")
    golds = [f"x^{n}+{n}x+1" for n in range(2, 60)]
    if arguments.math:
        golds = [problem.answer for problem in load_problems(str(arguments.math))]
    pairs = algebra(golds, arguments.answers)
    alone, latencies_alone = asyncio.run(math(pairs, 1, None))
    both, latencies_both = asyncio.run(math(pairs, 2, None))
    stuck, latencies_stuck = asyncio.run(math(pairs, 2, arguments.stuck_seconds))
    print("| MATH | answers/s | median ms | 90% | 99% | longest |")
    print("|---|---|---|---|---|---|")
    print(row("1 worker", alone, latencies_alone))
    print(row("2 workers", both, latencies_both))
    print(row(f"2 workers, one of them stuck for {arguments.stuck_seconds:g} s", stuck, latencies_stuck))
    print(f"\n2 workers against 1: {both / alone:.2f} times")


if __name__ == "__main__":
    main()
