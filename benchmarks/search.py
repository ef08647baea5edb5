"""What a search costs: its bookkeeping alone, and what it leaves of a real engine's speed.

    python benchmarks/search.py bookkeeping [--problems 400]   node expansions per CPU second and bytes a node
    python benchmarks/search.py engine [--problems 192]        vLLM under a build, against a flat batch and one by one
    python benchmarks/search.py reading [--problems 64]        how often a search reads the same tokens, by block size
    python benchmarks/search.py solved [--problems 128]        problems solved by search and by sampling, equal tokens

bookkeeping: a canned engine answers from a list, so its own time can be measured alone (the same requests, no search)
    and taken off. Each problem is searched with the default settings; an expansion is a node added to a tree.
engine: a teacher, the embedded one or `--teacher MODEL` under its chat template. A build of all problems at once, with
    `--leaves` of each; the same requests in one flat batch; the same build one problem, and so one call, at a time
    (`--alone`). The prefix cache is emptied before each.
reading: prompt tokens of a build's requests, how many of them are different, and how many a prefix cache that holds
    everything would leave to compute, by the size of its blocks; and what vLLM has computed.
solved: the embedded teacher and the embedded student, which often fails, as the teacher of a search; by rollouts a
    problem. Whole solutions are sampled, one more of every problem until that has taken as many tokens as the search.
"""

import argparse
import asyncio
import random
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
from recorded import Recorded
from treeopo_storage import ProblemTree

from treeopo.config import BuildConfig, load_config
from treeopo.engines.in_process import VllmEngine
from treeopo.engines.scripted import CharTokenizer
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.ports import Grade
from treeopo.problems.graders import open_grader
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Prompter
from treeopo.problems.spec import load_problem_set
from treeopo.problems.staged_arithmetic import Difficulty
from treeopo.records import Completion, FinishReason, Problem, Request
from treeopo.run.models import embedded
from treeopo.search.build import build_trees
from treeopo.search.settings import SearchSettings
from treeopo.seeds import derive_seed

TOKENIZE = CharTokenizer()
GOAL = 20_000
ROUND = 64
VARIANTS, MAX_STEPS, STEP_TOKENS, PROMPT_TOKENS = 256, 4, 15, 60
BLOCKS = (1, 16, 32, 64, 128)
TEMPLATE = Path(__file__).parents[1] / "examples" / "smollm2" / "question.txt"
LENGTHS = {"search.max_step_tokens": 32, "search.max_solution_tokens": 96}


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


@dataclass(frozen=True)
class Task:
    """The problems to search or to sample, and all that goes with them."""

    config: BuildConfig
    problem_set: ProblemSet
    prompter: Prompter
    tokenizer: ModelTokenizer

    @classmethod
    def of(cls, limit: int, teacher: Path | None = None, /, **flags: object) -> "Task":
        if teacher is not None:
            flags = {"prompt.style": "chat", "prompt.template": TEMPLATE, **LENGTHS, **flags}
        config = load_config(BuildConfig, file=None, flags={"output": Path("unused"), "limit": limit, **flags})
        tokenizer = ModelTokenizer(str(teacher or embedded(config.problems).teacher))
        problem_set = load_problem_set(config.problems, config.limit)
        return cls(config, problem_set, Prompter(tokenizer, config.prompt, problem_set), tokenizer)

    async def build(self, recorded: Recorded, concurrency: int) -> int:
        """Problems solved by a search of all of them."""
        config = self.config
        async with open_grader(self.problem_set.grader, config.grading) as grader:
            progress = await build_trees(
                self.problem_set.problems, 0, self.prompter, recorded, grader, self.tokenizer, config.search,
                config.seed, commit=lambda trees: None, concurrency=concurrency,
            )  # fmt: skip
        return progress.solved

    async def sample(self, recorded: Recorded, tokens: int) -> int:
        """Problems with a right one among the whole solutions sampled with so many tokens, round by round."""
        problems, right = self.problem_set.problems, set[str]()
        rounds = ((attempt, start) for attempt in count() for start in range(0, len(problems), ROUND))
        async with open_grader(self.problem_set.grader, self.config.grading) as grader:
            while recorded.tokens < tokens:
                attempt, start = next(rounds)
                asked = problems[start : start + ROUND]
                verdicts = await asyncio.gather(*(self.solves(each, attempt, recorded, grader) for each in asked))
                right |= {problem.id for problem, verdict in zip(asked, verdicts, strict=True) if verdict}
        return len(right)

    async def solves(self, problem: Problem, attempt: int, recorded: Recorded, grader: Grade) -> bool:
        seed = derive_seed(self.config.seed, attempt, self.problem_set.problems.index(problem))
        request = Request(self.prompter(problem), self.config.search.max_solution_tokens, seed)
        completion = await recorded.generate(request)
        return completion.finish_reason is FinishReason.STOP and bool(await grader(problem, completion.text))

    def start(self, model: Path) -> VllmEngine:
        """An engine with room for the longest problem's prompt and solution."""
        longest = max(len(self.prompter(problem)) for problem in self.problem_set)
        room = longest + self.config.search.max_solution_tokens
        return VllmEngine.start(str(model), replace(self.config.engine, max_model_tokens=room))


async def compare_solved(problems: int) -> None:
    for difficulty in Difficulty:
        spec = f"staged-arithmetic:{difficulty}:train"
        models = embedded(spec)
        for name, model in (("teacher", models.teacher), ("student", models.student)):
            engine = Task.of(problems, problems=spec).start(model)
            try:
                for rollouts in (2, 4, 8, 16):
                    task = Task.of(problems, problems=spec, **{"search.rollouts": rollouts})
                    recorded = Recorded(engine)
                    solved = await task.build(recorded, task.config.concurrency)
                    sampled = await task.sample(Recorded(engine), recorded.tokens)
                    print(
                        f"{difficulty:8} {name:8} {rollouts:2} rollouts, {recorded.tokens:7,} tokens: "
                        f"{solved} of {problems} by the search, {sampled} by sampling",
                        flush=True,
                    )
            finally:
                await engine.close()


async def compare_engine(problems: int, teacher: Path | None, leaves: int, rounds: int, one_by_one: bool) -> None:
    task = Task.of(problems, teacher, **{"search.leaves": leaves})
    config = task.config
    engine = task.start(teacher or embedded(config.problems).teacher)

    async def timed(side: Callable[[Recorded], Awaitable[Any]], *, cold: bool = True) -> tuple[float, Recorded]:
        if cold:
            await engine._llm.reset_prefix_cache()
        recorded, began = Recorded(engine), time.perf_counter()
        await side(recorded)
        return time.perf_counter() - began, recorded

    try:
        warm = Recorded(engine)
        await task.build(warm, config.concurrency)
        built, flat, read = [], [], []
        for _ in range(rounds):
            built.append(await timed(lambda recorded: task.build(recorded, config.concurrency)))
            requests = built[-1][1].requests
            flat.append(await timed(methodcaller("ask", requests)))
            read.append(await timed(methodcaller("ask", requests), cold=False))
        alone = await timed(lambda recorded: task.build(recorded, 1)) if one_by_one else None
    finally:
        await engine.close()
    rate, straight, known = (
        statistics.median(each.tokens / seconds for seconds, each in side) for side in (built, flat, read)
    )
    searched = statistics.median(seconds for seconds, _ in built)
    print(f"{problems} problems, {len(warm.requests):,} requests, {warm.tokens:,} tokens; medians of {rounds}")
    print(f"build       {rate:8,.0f} tokens/s")
    print(f"flat batch  {straight:8,.0f} tokens/s; ratio {rate / straight:.2f}")
    print(f"  all whole blocks of its prompts in the cache {known:8,.0f} tokens/s; ratio {straight / known:.2f}")
    if alone is not None:
        print(f"one by one  {alone[1].tokens / alone[0]:8,.0f} tokens/s, {alone[0]:.1f} s; build {searched:.1f} s")
        print(f"the build takes one part in {alone[0] / searched:.1f} (goal 10)")


async def compare_reading(problems: int, teacher: Path | None) -> None:
    task = Task.of(problems, teacher)
    engine = task.start(teacher or embedded(task.config.problems).teacher)
    try:
        recorded = Recorded(engine)
        await task.build(recorded, task.config.concurrency)
    finally:
        await engine.close()
    prompts = [tuple(request.token_ids) for request in recorded.requests]
    asked = sum(map(len, prompts))
    print(f"{problems} problems, {len(prompts):,} requests, {asked:,} prompt tokens, {recorded.tokens:,} answered")
    for block in BLOCKS:
        seen, computed = set[tuple[int, ...]](), 0
        for prompt in prompts:
            ends = range(block, len(prompt), block)  # vLLM always computes the last token of a prompt
            cached = next((end for end in reversed(ends) if prompt[:end] in seen), 0)
            computed += len(prompt) - cached
            seen.update(prompt[:end] for end in ends)
        print(f"blocks of {block:3}: {computed:9,} computed, {computed / asked:.0%} of them", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("bookkeeping")
    command.add_argument("--problems", type=int, default=400)
    command.set_defaults(measure=bookkeeping)
    command = commands.add_parser("engine")
    command.add_argument("--problems", type=int, default=192)
    command.add_argument("--teacher", type=Path)
    command.add_argument("--leaves", type=int, default=1)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--alone", action="store_true")
    command.set_defaults(
        measure=lambda arguments: asyncio.run(
            compare_engine(arguments.problems, arguments.teacher, arguments.leaves, arguments.rounds, arguments.alone)
        )
    )
    command = commands.add_parser("reading")
    command.add_argument("--problems", type=int, default=64)
    command.add_argument("--teacher", type=Path)
    command.set_defaults(measure=lambda arguments: asyncio.run(compare_reading(arguments.problems, arguments.teacher)))
    command = commands.add_parser("solved")
    command.add_argument("--problems", type=int, default=128)
    command.set_defaults(measure=lambda arguments: asyncio.run(compare_solved(arguments.problems)))
    arguments = parser.parse_args()
    arguments.measure(arguments)


if __name__ == "__main__":
    main()
