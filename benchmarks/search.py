"""What the search itself costs, engine excluded: node expansions per CPU second and bytes a node.

    python benchmarks/search.py [--problems 400]

A canned engine answers from a list, so its own time can be measured alone (the same requests, no search) and taken off.
Each problem is searched with the default settings; an expansion is a node added to a tree.
"""

import argparse
import asyncio
import random
import time
import tracemalloc
from collections.abc import Sequence

import numpy as np
from treeopo_storage import ProblemTree

from treeopo.engines.scripted import CharTokenizer
from treeopo.records import Completion, FinishReason, Problem, Request
from treeopo.search.build import build_trees
from treeopo.search.settings import SearchSettings

TOKENIZE = CharTokenizer()
GOAL = 20_000
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=400)
    arguments = parser.parse_args()
    problems = [Problem(f"p{index}", f"{index:{PROMPT_TOKENS}d}", "1") for index in range(arguments.problems)]
    rates = []
    for _ in range(3):
        requests, kept = list[Request](), list[ProblemTree]()
        started = time.process_time()
        nodes = asyncio.run(search_all(CannedEngine(requests), problems, kept))
        searched = time.process_time()
        asyncio.run(replay(requests))
        bookkeeping = (searched - started) - (time.process_time() - searched)
        rates.append(nodes / bookkeeping)
    rate = sorted(rates)[1]
    print(f"{nodes} nodes of {len(problems)} problems, {len(requests)} requests")
    print(f"bookkeeping: {rate:,.0f} node expansions per CPU second (goal {GOAL:,}: {rate / GOAL:.2f}x)")

    kept = []
    tracemalloc.start()
    nodes = asyncio.run(search_all(CannedEngine(), problems[:64], kept))
    _, peak = tracemalloc.get_traced_memory()
    tokens = sum(len(tree.token_ids) for tree in kept)
    print(f"memory: at most {peak / nodes:,.0f} bytes a node ({tokens / nodes:.0f} tokens each, search state included)")


if __name__ == "__main__":
    main()
