"""The asynchronous pipeline: what overlapping buys, what it costs, and whether anything is learned less for it.

    python benchmarks/async.py scripted                     no model, no engine process: what the bookkeeping costs
    python benchmarks/async.py overlap STORE [--steps 12]   asynchronous against synchronous, and publication
    python benchmarks/async.py overhead STORE [--rounds 3]  engine tokens a second in the pipeline against straight
    python benchmarks/async.py learning STORE [--rows N]    final pass@1 by staleness and correction

scripted   10,000 completions at once through sampler, grader, advantages and batching; CPU seconds, memory
overlap    the same seeds and batches with eta = 0 and eta = 1, engine and learner pinned to a core each. Ideal is
           (T_engine + T_learner) / max(T_engine, T_learner), with the times of the synchronous run, in which each
           side has its core to itself. Publication: from the end of the optimiser step to the first requests of the
           batch that waited for the new version.
overhead   one engine; the same requests through draw, grade and advantages, and straight to it, prefix cache empty
learning   a run a row, in a JSON Lines file; rows that are there already are not run again

STORE is a tree store of the embedded default (`make demo` leaves demo/trees.zarr).
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

from recorded import Recorded
from treeopo_storage import MemoryTreeStore, StoreMeta, TreeStore, open_store

from treeopo.advantage import AdvantageSettings
from treeopo.config import TrainConfig, load_config
from treeopo.engines.in_process import VllmEngine
from treeopo.engines.launch import start_engine
from treeopo.engines.scripted import CharTokenizer, ScriptedEngine, TreeWorld
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.jobs.train import train
from treeopo.ports import Engine, Generate
from treeopo.problems.graders.number import grade
from treeopo.records import Completion, Problem, PromptGroup, Request, TrainBatch
from treeopo.rollout.batches import assemble
from treeopo.rollout.finishing import Finish
from treeopo.rollout.memory import OutcomeMemory
from treeopo.rollout.meter import EngineMeter
from treeopo.rollout.pipeline import Metrics, Pipeline, Stages
from treeopo.rollout.rollouts import BatchParts, RolloutBatches
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.sampling.names import StartStates
from treeopo.rollout.settings import RolloutSettings
from treeopo.run.directory import RunDirectory
from treeopo.run.models import embedded
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings
from treeopo.tasks import patient_collector
from treeopo.timeline import read_timeline
from treeopo.trackers.jsonl import read_metrics

ENGINE_CORE, LEARNER_CORE = 0, 1
WARM_UP = 2  # steps left out: the first ones fill caches and allocate
GOAL_COMPLETIONS = 10_000
CORRECTIONS = ("none", "token-truncate")


def rollouts_over(store: TreeStore, engine: Generate, settings: RolloutSettings, meter: EngineMeter) -> RolloutBatches:
    """Everything of a batch but the engine, as `treeopo train` puts it together."""
    problems = [Problem(tree.id, tree.question, tree.answer) for tree in store.problems(0, store.problem_count)]

    async def grade_drawn(drawn: PromptGroup, completion: Completion) -> float:
        return grade(problems[drawn.problem], completion.text)

    sampler = GroupSampler(store, settings, 0, StartStates.UNIFORM)
    assembled = partial(assemble, settings=AdvantageSettings())
    memory = OutcomeMemory(store.structure(), settings, steps=1)
    parts = BatchParts(sampler, memory, Finish(engine, grade_drawn, settings, 0, meter), assembled)
    return RolloutBatches(parts, settings)


# scripted


def scripted(arguments: argparse.Namespace) -> None:
    world = TreeWorld(branching=3, depth=3, success=lambda letters: 0.6 if letters[0] == "a" else 0.3)
    store = asyncio.run(searched(world, problems=64))
    settings = RolloutSettings(
        batch_size=arguments.concurrent, max_staleness=0, max_prompt_tokens=64, max_sequence_tokens=128
    )
    requests = asyncio.run(run_scripted(world, store, settings, steps=1, recorded=True))[1]
    seconds, _, growth = asyncio.run(run_scripted(world, store, settings, arguments.steps, recorded=False))
    own = asyncio.run(replay(world, requests)) * arguments.steps
    completions = arguments.steps * arguments.concurrent
    net = completions / (seconds - own)
    print(f"{completions:,} completions, {arguments.concurrent:,} at once, in {seconds:.2f} CPU seconds")
    print(f"the script itself: {own:.2f} of them; with it {completions / seconds:,.0f} completions a CPU second")
    print(f"without it: {net:,.0f} a CPU second (goal {GOAL_COMPLETIONS:,}: {net / GOAL_COMPLETIONS:.2f}x)")
    print(f"memory from batch {arguments.steps // 2} to batch {arguments.steps}: {growth:+.1f} MiB")


async def searched(world: TreeWorld, problems: int) -> TreeStore:
    store = MemoryTreeStore(StoreMeta(tokenizer_fingerprint="characters", teacher="scripted"))
    with store.open_writer() as writer:
        for index in range(problems):
            problem = world.problem(f"p{index}")
            prompt = CharTokenizer().encode(problem.question)
            tokenizer, settings = CharTokenizer(), SearchSettings()
            tree = await search_problem(
                problem, prompt, ScriptedEngine(world), world.grade, tokenizer, settings, seed=index
            )
            writer.append([tree])
    return store.open_store()


async def run_scripted(
    world: TreeWorld, store: TreeStore, settings: RolloutSettings, steps: int, recorded: bool
) -> tuple[float, list[Request], float]:
    """CPU seconds, the requests, and MiB by which the process grew over the second half of the batches."""
    engine: Any = Recorded(ScriptedEngine(world)) if recorded else ScriptedEngine(world)
    meter = EngineMeter(settings.batch_size)
    rollouts = rollouts_over(store, engine, settings, meter)
    await rollouts.batch(0)  # compiles the kernels
    if recorded:
        engine.requests.clear()
    resident: list[float] = []

    async def learn(batch: TrainBatch) -> Metrics:
        resident.append(resident_mib())
        return {}

    async def publish(version: int) -> None:
        return

    async def on_step(version: int, metrics: Metrics) -> bool:
        return True

    with patient_collector():  # as `treeopo train` runs
        began = time.process_time()
        await Pipeline(Stages(rollouts.batch, learn, publish), settings.max_staleness, meter).run(0, steps, on_step)
        seconds = time.process_time() - began
    return seconds, engine.requests if recorded else [], resident[-1] - resident[len(resident) // 2 - 1]


async def replay(world: TreeWorld, requests: list[Request]) -> float:
    """CPU seconds of the scripted engine alone, answering the same requests at once."""
    engine = ScriptedEngine(world)
    with patient_collector():
        began = time.process_time()
        await asyncio.gather(*map(engine.generate, requests))
        return time.process_time() - began


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# overlap


def overlap(arguments: argparse.Namespace) -> None:
    rows, timelines = {}, {}
    for staleness in (0, 1):
        settings = {"steps": arguments.steps + WARM_UP, "rollout.max_staleness": staleness}
        with tempfile.TemporaryDirectory() as directory:
            run = trained(arguments, Path(directory), settings, start_pinned)
            rows[staleness] = read_metrics(run.metrics)[WARM_UP:]
            timelines[staleness] = read_timeline(run.timeline)
    engine = mean(rows[0], "pipeline/seconds_waiting")
    learner = mean(rows[0], "pipeline/seconds_learning") + mean(rows[0], "pipeline/seconds_publishing")
    synchronous, asynchronous = mean(rows[0], "pipeline/seconds_step"), mean(rows[1], "pipeline/seconds_step")
    ideal, reached = (engine + learner) / max(engine, learner), synchronous / asynchronous
    print(f"T_engine {engine:.3f} s, T_learner {learner:.3f} s (publishing included), T_sync {synchronous:.3f} s")
    print(
        f"T_async {asynchronous:.3f} s: {reached:.2f} times as fast; ideal {ideal:.2f}; reached {reached / ideal:.2f}"
    )
    for staleness in (0, 1):
        delays = publication_delays(timelines[staleness], staleness)[WARM_UP:]
        share = statistics.mean(delays) / mean(rows[staleness], "pipeline/seconds_step")
        print(f"publication, eta = {staleness}: {statistics.mean(delays):.3f} s, {share:.1%} of a step")
    engine_side = ("engine/seconds_starved", "engine/seconds_publishing", "engine/occupancy")
    for name in ("pipeline/seconds_waiting", *engine_side):
        print(f"{name}: eta = 0 {mean(rows[0], name):.3f}, eta = 1 {mean(rows[1], name):.3f}")


def mean(rows: list[dict[str, Any]], name: str) -> float:
    return float(statistics.mean(row[name] for row in rows))


def publication_delays(events: list[dict[str, Any]], staleness: int) -> list[float]:
    """Seconds from the end of `learn v` to the start of the batch that waited for v + 1."""
    ended, began = {}, {}
    for event in events:
        if event["ph"] == "X" and event["name"].startswith("learn "):
            ended[event["args"]["batch"]] = (event["ts"] + event["dur"]) / 1e6
        elif event["ph"] == "X" and event["name"].startswith("batch ") and not event["name"].endswith("queue"):
            began[event["args"]["batch"]] = event["ts"] / 1e6
    waited_for = {version: version + 1 + staleness for version in ended}
    return [began[batch] - ended[version] for version, batch in sorted(waited_for.items()) if batch in began]


def trained(
    arguments: argparse.Namespace, directory: Path, settings: dict[str, Any], start: Any = start_engine
) -> RunDirectory:
    flags = {
        "store": arguments.store,
        "output": directory / "run",
        "rollout.batch_size": arguments.batch,
        "engine.max_concurrent": 2 * arguments.batch,
        "checkpoint_every": 1_000_000,
        **settings,
    }
    run = RunDirectory.create(load_config(TrainConfig, file=None, flags=flags))
    train(run, lambda notice: None, lambda step, metrics: None, start)
    return run


async def start_pinned(model: str, options: EngineOptions, adapters: Adapters | None) -> Engine:
    """An engine with a core of its own; this process, the learner in it, gets another."""
    engine = await start_engine(model, options, adapters)
    for child in multiprocessing.active_children():
        if child.pid is not None:
            pin(child.pid, ENGINE_CORE)
    pin(os.getpid(), LEARNER_CORE)
    return engine


def pin(process: int, core: int) -> None:
    for task in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


# overhead


def overhead(arguments: argparse.Namespace) -> None:
    rates = asyncio.run(compare_rates(arguments))
    for name, rate in rates.items():
        print(f"{name:9s} {statistics.median(rate):,.0f} tokens/s  ({', '.join(f'{each:,.0f}' for each in rate)})")
    ratio = statistics.median(rates["pipeline"]) / statistics.median(rates["straight"])
    print(f"ratio {ratio:.3f}")


async def compare_rates(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens a second of the same requests both ways, the sides alternating in who goes first."""
    config = load_config(TrainConfig, file=None, flags={"store": arguments.store, "output": Path("unused")})
    settings = replace(config.rollout, batch_size=arguments.batch)
    store = open_store(arguments.store)
    student = str(embedded(str(store.meta.search.get("problems", ""))).student)
    options = replace(config.engine, max_model_tokens=settings.max_sequence_tokens, max_concurrent=arguments.batch)
    engine = VllmEngine.start(student, options)
    rates: dict[str, list[float]] = {"pipeline": [], "straight": []}
    try:
        recorded = Recorded(engine)
        rollouts = rollouts_over(store, recorded, settings, EngineMeter(arguments.batch))
        await rollouts.batch(0)  # warms up, and compiles the kernels
        for number in range(1, arguments.rounds + 1):
            recorded.requests.clear()
            rates["pipeline"].append(await rate(engine, recorded, partial(rollouts.batch, number)))
            requests = list(recorded.requests)
            straight = rate(engine, recorded, partial(recorded.ask, requests))
            rates["straight"].append(await straight)
    finally:
        await engine.close()
    return rates


async def rate(engine: Any, recorded: Recorded, work: Callable[[], Any]) -> float:
    await engine._llm.reset_prefix_cache()
    before, began = recorded.tokens, time.monotonic()
    await work()
    return float((recorded.tokens - before) / (time.monotonic() - began))


# learning


def learning(arguments: argparse.Namespace) -> None:
    done = read_rows(arguments.output)
    for key in islice((each for each in grid(arguments.seeds) if each not in done), arguments.rows):
        staleness, correction, seed = key
        began = time.monotonic()
        settings = {
            "steps": arguments.steps,
            "seed": seed,
            "rollout.max_staleness": staleness,
            "learner.correction": correction,
            "evaluation.problems": "staged-arithmetic:easy:test",
            "evaluation.every": 1_000_000,  # before the first step and after the last
            "evaluation.limit": arguments.limit,
        }
        with tempfile.TemporaryDirectory() as directory:
            run = trained(arguments, Path(directory), settings)
            before, after = (row["eval/pass_at_1"] for row in read_metrics(run.evaluations))
            steps = read_metrics(run.metrics)
        row = {
            "staleness": staleness,
            "correction": correction,
            "seed": seed,
            "before": before,
            "after": after,
            "staleness_mean": mean(steps, "rollout/staleness_mean"),
            "seconds_step": mean(steps[WARM_UP:], "pipeline/seconds_step"),
            "seconds": time.monotonic() - began,
        }
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        done[key] = row
    print_learning(done, arguments.seeds)


def grid(seeds: int) -> Iterator[tuple[int, str, int]]:
    """Seed by seed, so that a stopped grid is balanced."""
    return (
        (staleness, correction, seed) for seed, staleness, correction in product(range(seeds), (0, 1, 4), CORRECTIONS)
    )


def read_rows(path: Path) -> dict[tuple[int, str, int], dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(row["staleness"], row["correction"], row["seed"]): row for row in rows}


def print_learning(rows: dict[tuple[int, str, int], dict[str, Any]], seeds: int) -> None:
    print("eta  correction      runs  before  after (each seed)             seconds/step")
    for staleness, correction in product((0, 1, 4), CORRECTIONS):
        of_row = [rows[staleness, correction, seed] for seed in range(seeds) if (staleness, correction, seed) in rows]
        if of_row:
            after = [row["after"] for row in of_row]
            each = ", ".join(f"{value:.3f}" for value in after)
            print(
                f"{staleness:3d}  {correction:14s}  {len(of_row):4d}  {mean(of_row, 'before'):6.3f}  "
                f"{statistics.mean(after):.3f} ({each})  {mean(of_row, 'seconds_step'):12.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("scripted")
    command.add_argument("--concurrent", type=int, default=10_000)
    command.add_argument("--steps", type=int, default=8)
    command.set_defaults(measure=scripted)
    for name, measure, batch in (("overlap", overlap, 128), ("overhead", overhead, 128), ("learning", learning, 128)):
        command = commands.add_parser(name)
        command.add_argument("store", type=Path)
        command.add_argument("--batch", type=int, default=batch)
        command.set_defaults(measure=measure)
        if name == "overhead":
            command.add_argument("--rounds", type=int, default=5)
        else:
            command.add_argument("--steps", type=int, default=12 if name == "overlap" else 30)
        if name == "learning":
            command.add_argument("--seeds", type=int, default=3)
            command.add_argument("--limit", type=int, default=200, help="held-out problems")
            command.add_argument("--rows", type=int, default=None, help="at most so many runs now")
            command.add_argument("-o", "--output", type=Path, default=Path("learning.jsonl"))
    arguments = parser.parse_args()
    arguments.measure(arguments)


if __name__ == "__main__":
    main()
