"""A whole training run over the scripted engine and the real learner, in a process that a test can kill.

Everything between the two is the real composition (`treeopo.jobs.train`), so what a kill can tear is all there.
"""

import asyncio
import random
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from treeopo_storage import StoreMeta, create_store, open_writer

from tests.conftest import WORLD
from tests.tiny_models import random_qwen2
from treeopo.config import TrainConfig, load_config
from treeopo.engines.scripted import Pieces, ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.jobs.train import train as run_job
from treeopo.records import Request
from treeopo.run.directory import RunDirectory
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings


def prepare(directory: Path) -> None:
    """A random student, and six problems of `WORLD` searched in its tokenizer."""
    random_qwen2(directory / "student")
    tokenizer = ModelTokenizer(str(directory / "student"))
    create_store(directory / "trees.zarr", StoreMeta(tokenizer_fingerprint=tokenizer.fingerprint, teacher="scripted"))

    async def search() -> None:
        settings = SearchSettings(rollouts=12, depth=4)
        with open_writer(directory / "trees.zarr") as writer:
            for index in range(6):
                problem = WORLD.problem(f"p{index}")
                prompt = tokenizer.encode(problem.question)
                engine = ScriptedEngine(WORLD, tokenizer)
                writer.append([await search_problem(problem, prompt, engine, WORLD.grade, tokenizer, settings, index)])

    asyncio.run(search())


def new_run(directory: Path, name: str, **settings: Any) -> RunDirectory:
    """A run that has not begun; it takes a checkpoint at every third step."""
    flags = {
        "store": directory / "trees.zarr",
        "output": directory / name,
        "student": str(directory / "student"),
        "checkpoint_every": 3,
        "rollout.group_size": 4,
        "rollout.batch_size": 8,
        "rollout.max_prompt_tokens": 40,
        "rollout.max_sequence_tokens": 80,
        "rollout.behaviour.sequences": 0,  # the scripted engine's log-probabilities are not the student's
        "learner.lora.rank": 4,
        "learner.optimizer.learning_rate": 1e-3,
        **settings,
    }
    run = RunDirectory.create(load_config(TrainConfig, file=None, flags=flags))
    run.begin()
    return run


def policy_of_the_version(prompt: str, rng: random.Random, version: int) -> Pieces:
    """Says other things under every version, so a batch sampled from the wrong one shows."""
    return WORLD(prompt, random.Random(rng.getrandbits(32) * 1000 + version), version)


def latency(request: Request) -> float:
    return random.Random(request.seed).random() * 0.02


def train(path: Path, under_way: Event) -> None:
    """Start or resume the run at `path`; `under_way` is set once it is about to take steps."""
    run = RunDirectory.open(path)
    # From a policy that learns, a resumed run with eta > 0 samples by another version: its staleness is the point.
    policy = WORLD if run.config.rollout.max_staleness else policy_of_the_version

    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        under_way.set()
        return ScriptedEngine(policy, ModelTokenizer(model), latency=latency)

    run_job(run, lambda notice: None, lambda step, metrics: None, start_engine)
