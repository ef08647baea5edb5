"""What keeping rollouts on disk costs the pipeline: scripted steps that keep none, and the same that keep all.

    python benchmarks/rollouts_on_disk.py [--batch 1024] [--steps 4] [--rounds 40] [--learn 0.25]

No model and no engine process: the event loop does nothing but treeopo's own work, so what the writing thread takes
from it (Python's lock, a core) shows most. --learn: seconds that a step of the learner takes, asleep; with 0 the loop
is never idle, which it is in no run with a model. Rounds are short, the sides take turns in who goes first, and keeping
none is measured twice, so that the second against the first says what the machine's noise is.

hand-over    what the event loop itself does for it, a step: `take` and `commit`
throughput   completions a second of the whole pipeline, to its last step
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from treeopo_storage import MemoryTreeStore, StoreMeta, TreeStore

from treeopo.advantage import AdvantageSettings
from treeopo.engines.scripted import CharTokenizer, ScriptedEngine, TreeWorld
from treeopo.problems.graders.number import grade
from treeopo.records import Completion, Problem, PromptGroup, RolloutGroup, TrainBatch
from treeopo.rollout.batches import assemble
from treeopo.rollout.finishing import Finish
from treeopo.rollout.memory import OutcomeMemory
from treeopo.rollout.meter import EngineMeter
from treeopo.rollout.pipeline import Metrics, Pipeline, Stages
from treeopo.rollout.rollouts import BatchParts, RolloutBatches
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.sampling.names import StartStates
from treeopo.rollout.settings import RolloutSettings
from treeopo.run.kept_rollouts import KeptRollouts
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings
from treeopo.tasks import patient_collector

SIDES = ("none", "all", "none again")
WORLD = TreeWorld(branching=3, depth=3, success=lambda letters: 0.6 if letters[0] == "a" else 0.3)


class Timed:
    """Kept rollouts, and the seconds that each step's hand-over took the event loop; of nothing where none are kept."""

    def __init__(self, kept: KeptRollouts | None) -> None:
        self.kept = kept
        self.seconds: list[float] = []

    def take(self, groups: Sequence[RolloutGroup], batch: TrainBatch) -> None:
        began = time.perf_counter()
        if self.kept is not None:
            self.kept.take(groups, batch)
        self.seconds.append(time.perf_counter() - began)

    def commit(self, step: int) -> None:
        began = time.perf_counter()
        if self.kept is not None:
            self.kept.commit(step)
        self.seconds[step - 1] += time.perf_counter() - began


async def searched(problems: int) -> TreeStore:
    store, tokenizer = (
        MemoryTreeStore(StoreMeta(tokenizer_fingerprint="characters", teacher="scripted")),
        CharTokenizer(),
    )
    with store.open_writer() as writer:
        for index in range(problems):
            problem = WORLD.problem(f"p{index}")
            prompt = tokenizer.encode(problem.question)
            engine, settings = ScriptedEngine(WORLD), SearchSettings()
            writer.append([await search_problem(problem, prompt, engine, WORLD.grade, tokenizer, settings, seed=index)])
    return store.open_store()


def rollouts_over(store: TreeStore, settings: RolloutSettings, meter: EngineMeter, timed: Timed) -> RolloutBatches:
    problems = [Problem(tree.id, tree.question, tree.answer) for tree in store.problems(0, store.problem_count)]

    async def grade_drawn(drawn: PromptGroup, completion: Completion) -> float:
        return grade(problems[drawn.problem], completion.text)

    sampler = GroupSampler(store, settings, 0, StartStates.UNIFORM)
    memory = OutcomeMemory(store.structure(), settings, steps=1)
    finish = Finish(ScriptedEngine(WORLD), grade_drawn, settings, 0, meter)
    parts = BatchParts(sampler, memory, finish, partial(assemble, settings=AdvantageSettings()), keep=timed.take)
    return RolloutBatches(parts, settings)


async def pipeline(store: TreeStore, settings: RolloutSettings, timed: Timed, steps: int, learning: float) -> float:
    """Seconds of so many steps."""
    meter = EngineMeter(settings.batch_size)

    async def learn(batch: TrainBatch) -> Metrics:
        await asyncio.sleep(learning)
        return {}

    async def publish(version: int) -> None:
        return

    async def on_step(version: int, metrics: Metrics) -> bool:
        timed.commit(version)
        return True

    stages = Stages(rollouts_over(store, settings, meter, timed).batch, learn, publish)
    with patient_collector():  # as `treeopo train` runs
        began = time.perf_counter()
        await Pipeline(stages, settings.max_staleness, meter).run(0, steps, on_step)
        return time.perf_counter() - began


def measured(store: TreeStore, side: str, arguments: argparse.Namespace) -> tuple[float, list[float], float]:
    """Completions a second, seconds of each hand-over, and bytes a rollout."""
    settings = RolloutSettings(batch_size=arguments.batch, max_prompt_tokens=64, max_sequence_tokens=128)
    completions = arguments.batch * arguments.steps
    with tempfile.TemporaryDirectory() as directory:
        kept = KeptRollouts(Path(directory), None, 0, store.problem_id, CharTokenizer().decode)
        timed = Timed(kept if side == "all" else None)
        seconds = asyncio.run(pipeline(store, settings, timed, arguments.steps, arguments.learn))
        kept.close()
        written = sum(path.stat().st_size for path in Path(directory).iterdir())
    return completions / seconds, timed.seconds, written / completions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--learn", type=float, default=0.25)
    arguments = parser.parse_args()
    store = asyncio.run(searched(problems=64))
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    handed: dict[str, list[float]] = {side: [] for side in SIDES}
    size = 0.0
    for number in range(arguments.rounds + 1):
        for side in SIDES[number % 3 :] + SIDES[: number % 3]:
            rate, seconds, written = measured(store, side, arguments)
            size = max(size, written)
            if number > 0:  # the first round fills caches and compiles kernels
                rates[side].append(rate)
                handed[side] += seconds
    for side in SIDES:
        ratios = [rate / none for rate, none in zip(rates[side], rates["none"], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        step = arguments.batch / statistics.median(rates[side])
        hand_over = statistics.median(handed[side])
        print(
            f"keeping {side:10s} {statistics.median(rates[side]):7,.0f} completions/s, to none {ratio:.3f} (quartiles "
            f"{low:.3f} to {high:.3f}); hand-over {1e6 * hand_over:.1f} µs, {hand_over / step:.2%} of a step"
        )
    print(f"on disk: {size:.0f} bytes a rollout")


if __name__ == "__main__":
    main()
