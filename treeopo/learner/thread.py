"""The learner behind an asyncio face: each call runs to its end in one thread of its own, in the order given."""

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from treeopo.learner.checkpoints import Checkpoints
from treeopo.learner.distributed import Team
from treeopo.learner.learner import Learner
from treeopo.learner.objectives import Terms
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LearnerSettings
from treeopo.records import Carrier, FloatArray, TrainBatch, TrainSequence

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")


def load_learner(
    model: str,
    settings: LearnerSettings,
    objectives: Callable[[LoraPolicy], Terms],
    checkpoint: Path | None,
    *,
    steps: int,
    temperature: float,
    seed: int,
    trust_remote_code: bool = False,
    team: Team | None = None,
) -> Learner:
    """The student with a fresh adapter, or with the state of `checkpoint`.

    Raises:
        ModelError: the model cannot be loaded or adapted.
    """
    device = (team or Team()).device
    dtype = getattr(torch, settings.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    adapter = checkpoint / "adapter" if checkpoint else None
    _make_deterministic(settings.deterministic)
    torch.manual_seed(seed)
    policy = LoraPolicy.load(
        model,
        settings.lora,
        dtype=dtype,
        device=device,
        adapter=adapter,
        trust_remote_code=trust_remote_code,
        sharded=settings.fsdp,
    )
    learner = Learner(policy, objectives(policy), settings, steps=steps, temperature=temperature, team=team)
    if checkpoint:
        learner.load_state(checkpoint)
    return learner


class LearnerThread:
    """Keeps the event loop free while torch computes. Make one with `start`, end it with `close`."""

    def __init__(
        self, thread: ThreadPoolExecutor, learner: Learner, checkpoints: Checkpoints, team: Team | None = None
    ) -> None:
        self._team = team or Team()
        self._thread = thread
        self._learner = learner
        self._checkpoints = checkpoints

    @classmethod
    async def start(
        cls,
        model: str,
        settings: LearnerSettings,
        objectives: Callable[[LoraPolicy], Terms],
        checkpoints: Checkpoints,
        *,
        steps: int,
        temperature: float,
        seed: int,
        trust_remote_code: bool = False,
        team: Team | None = None,
    ) -> "LearnerThread":
        """Load the student with a fresh adapter, or with the state of the newest checkpoint.

        The other ranks of a `team` are told of each step and dismissed by `close`.

        Raises:
            ModelError: the model cannot be loaded or adapted.
        """
        load = partial(
            load_learner,
            model,
            settings,
            objectives,
            checkpoints.latest(),
            steps=steps,
            temperature=temperature,
            seed=seed,
            trust_remote_code=trust_remote_code,
            team=team,
        )
        # torch keeps its thread count per calling thread, so it is set in the one that computes.
        thread = ThreadPoolExecutor(1, "learner", initializer=torch.set_num_threads, initargs=(settings.threads,))
        return cls(thread, await asyncio.get_running_loop().run_in_executor(thread, load), checkpoints, team)

    @property
    def version(self) -> int:
        return self._learner.version

    async def step(self, batch: TrainBatch) -> dict[str, float]:
        return await self._call(self._together, Learner.step, batch)

    async def reference_logprobs(self, sequences: Sequence[TrainSequence]) -> list[FloatArray]:
        return await self._call(self._run_model, Learner.reference_logprobs, sequences)

    async def policy_logprobs(self, sequences: Sequence[TrainSequence]) -> list[FloatArray]:
        return await self._call(self._run_model, Learner.policy_logprobs, sequences)

    async def save_policy(self, carrier: Carrier, path: Path) -> None:
        """Write the policy in the form in which it travels: a safetensors file, or an adapter directory."""
        if carrier is Carrier.MERGED:
            await self._call(self._run_model, Learner.save_merged, path)
        else:
            await self.save_adapter(path)

    async def save_adapter(self, directory: Path) -> None:
        await self._call(self._learner.policy.save_adapter, directory)

    async def checkpoint(self) -> None:
        await self._call(self._checkpoints.save, self._learner.version, self._learner.save_state)

    async def export(self, directory: Path, accompany: Callable[[Path], None]) -> None:
        """Write the trained adapter with what `accompany` adds to it; `directory` appears whole."""

        def write() -> None:
            partial = directory.with_name(f".{directory.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            self._learner.policy.save_adapter(partial)
            accompany(partial)
            os.replace(partial, directory)

        await self._call(write)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._team.dismiss()

    def _run_model(self, method: Callable[[Learner, A], R], argument: A) -> R:
        """Call a method of the learner that runs its model: of every process's, if that is cut over them."""
        if self._learner.policy.sharded:
            return self._together(method, argument)
        return method(self._learner, argument)

    def _together(self, method: Callable[[Learner, A], R], argument: A) -> R:
        """Call a method of every process's learner at once; what this one's returns."""
        self._team.send((method, argument))
        return method(self._learner, argument)

    async def _call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        assert not kwargs
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def _make_deterministic(wanted: bool) -> None:
    """Of the whole process: torch has one switch. cuBLAS reads its workspace size when it is first used."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(wanted)
