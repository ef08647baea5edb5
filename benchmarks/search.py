"""What a search costs: its bookkeeping alone, and what it leaves of a real engine's speed.

    python benchmarks/search.py bookkeeping [--problems 400]   node expansions per CPU second and bytes a node
    python benchmarks/search.py engine [--problems 64]         vLLM under a build, against a flat batch and one by one

bookkeeping: a canned engine answers from a list, so its own time can be measured alone (the same requests, no search)
    and taken off. Each problem is searched with the default settings; an expansion is a node added to a tree.
engine: the embedded teacher. A build of all problems at once; the same requests in one flat batch; the same build one
    problem, and so one call, at a time. The prefix cache is emptied before each. Then whole solutions are sampled, one
    more of every problem until that has taken as many tokens: how many problems each solves.
"""

import argparse
import asyncio
import random
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from treeopo_storage import ProblemTree

from treeopo import runs
from treeopo.config import BuildConfig, load_config
from treeopo.engines.in_process import VllmEngine
from treeopo.engines.scripted import CharTokenizer
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.ports import Generate, Grade
from treeopo.problems.grader import open_grader
from treeopo.problems.prompting import Prompter
from treeopo.problems.spec import load_problem_set
from treeopo.records import Completion, FinishReason, Problem, Request
from treeopo.search.build import build_trees
from treeopo.search.settings import SearchSettings
from treeopo.seeds import derive_seed

TOKENIZE = CharTokenizer()
GOAL = 20_000
ROUND = 64
VARIANTS, MAX_STEPS, STEP_TOKENS, PROMPT_TOKENS = 256, 4, 15, 60


class CannedEngine:
    """Continues any prompt by one of many prepared steps of 15 tokens, or by those left of four and an answer."""

    def __init__(self, requests: list[Request] | None = None) -> None:
        rng = random.Random(0)
        steps = [f"{rng.getrandbits(40):013d}"[:13] + "\n\n" for _ in range(VARIANTS)]
        self.steps = [canned(step) for step in steps]
        self.rests = [
            [canned("".join(rng.choices(steps, k=n)) + "#### 1\0") for n in range(MAX_STEPS + 1)] for _ in steps
        ]
        self.requests = requests

    async def generate(self, request: Request) -> Completion:
        if self.requests is not None:
            self.requests.append(request)
        await asyncio.sleep(0)
        variant = request.seed % VARIANTS
        steps_done = (len(request.token_ids) - PROMPT_TOKENS) // STEP_TOKENS
        return self.steps[variant] if request.stop else self.rests[variant][MAX_STEPS - steps_done]


def canned(text: str) -> Completion:
    ids = np.array(TOKENIZE.encode(text), np.int32)
    return Completion(ids, np.full(len(ids), -0.1, np.float32), np.zeros(len(ids), np.int32), text, FinishReason.STOP)


async def grade(problem: Problem, text: str) -> float:
    return float(len(text) % 2)


async def search_all(engine: CannedEngine, problems: Sequence[Problem], kept: list[ProblemTree]) -> int:
    progress = await build_trees(
        problems,
        0,
        lambda problem: TOKENIZE.encode(problem.question),
        engine,
        grade,
        TOKENIZE,
        SearchSettings(),
        seed=0,
        commit=kept.extend,
        concurrency=64,
    )
    return progress.nodes


async def replay(requests: Sequence[Request]) -> None:
    """The same requests, 64 at a time, without a search."""
    engine = CannedEngine()
    waiting = iter(requests)

    async def work() -> None:
        for request in waiting:
            await engine.generate(request)

    await asyncio.gather(*(work() for _ in range(64)))


def bookkeeping(arguments: argparse.Namespace) -> None:
    problems = [Problem(f"p{index}", f"{index:{PROMPT_TOKENS}d}", "1") for index in range(arguments.problems)]
    rates = []
    for _ in range(3):
        requests, kept = list[Request](), list[ProblemTree]()
        started = time.process_time()
        nodes = asyncio.run(search_all(CannedEngine(requests), problems, kept))
        searched = time.process_time()
        asyncio.run(replay(requests))
        own = (searched - started) - (time.process_time() - searched)
        rates.append(nodes / own)
    rate = sorted(rates)[1]
    print(f"{nodes} nodes of {len(problems)} problems, {len(requests)} requests")
    print(f"bookkeeping: {rate:,.0f} node expansions per CPU second (goal {GOAL:,}: {rate / GOAL:.2f}x)")

    kept = []
    tracemalloc.start()
    nodes = asyncio.run(search_all(CannedEngine(), problems[:64], kept))
    _, peak = tracemalloc.get_traced_memory()
    tokens = sum(len(tree.token_ids) for tree in kept)
    print(f"memory: at most {peak / nodes:,.0f} bytes a node ({tokens / nodes:.0f} tokens each, search state included)")


class Recorded:
    """`Generate` that keeps what it was asked and counts what it answered."""

    def __init__(self, engine: Generate) -> None:
        self.engine = engine
        self.requests: list[Request] = []
        self.tokens = 0

    async def generate(self, request: Request) -> Completion:
        self.requests.append(request)
        completion = await self.engine.generate(request)
        self.tokens += len(completion.token_ids)
        return completion


async def compare_engine(problems: int) -> None:
    flags = {"output": Path("unused"), "limit": problems}
    config = load_config(BuildConfig, file=None, flags=flags)
    teacher = str(runs.embedded(config.problems).teacher)
    tokenizer = ModelTokenizer(teacher)
    problem_set = load_problem_set(config.problems, config.limit)
    prompter = Prompter(tokenizer, config.prompt, problem_set)
    room = max(len(prompter(problem)) for problem in problem_set) + config.search.max_solution_tokens
    engine = VllmEngine.start(teacher, replace(config.engine, max_model_tokens=room))

    async def build(recorded: Recorded, concurrency: int) -> int:
        async with open_grader(problem_set.family, config.grading) as grader:
            progress = await build_trees(
                problem_set.problems, 0, prompter, recorded, grader, tokenizer, config.search, config.seed,
                commit=lambda trees: None, concurrency=concurrency,
            )  # fmt: skip
        return progress.solved

    async def sample(recorded: Recorded, tokens: int) -> int:
        """Problems with a right solution among those sampled from the root with so many tokens."""
        right: set[str] = set()
        async with open_grader(problem_set.family, config.grading) as grader:
            for attempt in count():
                for start in range(0, problems, ROUND):
                    if recorded.tokens >= tokens:
                        return len(right)
                    asked = problem_set.problems[start : start + ROUND]
                    right |= await solved_of(asked, recorded, grader, attempt)
        raise AssertionError("count() does not end")

    async def solved_of(asked: Sequence[Problem], recorded: Recorded, grader: Grade, attempt: int) -> set[str]:
        async def solves(index: int, problem: Problem) -> bool:
            seed = derive_seed(config.seed, attempt, index)
            request = Request(prompter(problem), config.search.max_solution_tokens, seed)
            completion = await recorded.generate(request)
            return completion.finish_reason is FinishReason.STOP and bool(await grader(problem, completion.text))

        verdicts = await asyncio.gather(*(solves(index, problem) for index, problem in enumerate(asked)))
        return {problem.id for problem, verdict in zip(asked, verdicts, strict=True) if verdict}

    async def flat(recorded: Recorded, requests: Sequence[Request]) -> None:
        await asyncio.gather(*map(recorded.generate, requests))

    async def timed(side: Callable[[Recorded], Awaitable[Any]]) -> tuple[float, Recorded]:
        await engine._llm.reset_prefix_cache()
        recorded, began = Recorded(engine), time.perf_counter()
        await side(recorded)
        return time.perf_counter() - began, recorded

    try:
        warm = Recorded(engine)
        solved = await build(warm, config.concurrency)
        sampled = await sample(Recorded(engine), warm.tokens)
        rates: dict[str, list[float]] = {"build": [], "flat": []}
        for _ in range(3):
            searched, asked = await timed(lambda recorded: build(recorded, config.concurrency))
            seconds, answered = await timed(lambda recorded, r=asked.requests: flat(recorded, r))
            rates["build"].append(asked.tokens / searched)
            rates["flat"].append(answered.tokens / seconds)
        alone, one_by_one = await timed(lambda recorded: build(recorded, 1))
    finally:
        await engine.close()
    rate, straight = sorted(rates["build"])[1], sorted(rates["flat"])[1]
    print(f"{problems} problems, {len(asked.requests):,} requests, {asked.tokens:,} tokens; median of 3")
    print(f"build       {rate:8,.0f} tokens/s")
    print(f"flat batch  {straight:8,.0f} tokens/s; ratio {rate / straight:.2f} (goal 0.85)")
    print(f"one by one  {one_by_one.tokens / alone:8,.0f} tokens/s, {alone:.1f} s; build {searched:.1f} s")
    print(f"the build takes one part in {alone / searched:.1f} (goal 10)")
    print(f"solved      {solved} of {problems} by the search, {sampled} by sampling whole solutions, equal tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("bookkeeping")
    command.add_argument("--problems", type=int, default=400)
    command.set_defaults(measure=bookkeeping)
    command = commands.add_parser("engine")
    command.add_argument("--problems", type=int, default=64)
    command.set_defaults(measure=lambda arguments: asyncio.run(compare_engine(arguments.problems)))
    arguments = parser.parse_args()
    arguments.measure(arguments)


if __name__ == "__main__":
    main()
