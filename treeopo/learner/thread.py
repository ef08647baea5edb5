"""The learner behind an asyncio face: each call runs to its end in one thread of its own, in the order given."""

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar, assert_never

import torch

from treeopo.learner.checkpoints import Checkpoints
from treeopo.learner.distributed import Team
from treeopo.learner.learner import Learner
from treeopo.learner.newest_tokens import Agreement
from treeopo.learner.spec import LearnerSpec
from treeopo.ports import Notify
from treeopo.records import FloatArray, TrainBatch, TrainSequence, WeightFormat
from treeopo.threads import share

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")


class LearnerThread:
    """Keeps the event loop free while torch computes. Make one with `start`, end it with `close`."""

    def __init__(
        self, thread: ThreadPoolExecutor, learner: Learner, checkpoints: Checkpoints, team: Team | None = None
    ) -> None:
        self._team = team or Team()
        self._thread = thread
        self._learner = learner
        self._checkpoints = checkpoints
        self._beside: list[Callable[[int], Callable[[Path], None]]] = []

    @classmethod
    async def start(
        cls,
        spec: LearnerSpec,
        checkpoints: Checkpoints,
        team: Team | None = None,
        notify: Notify = lambda text: None,
    ) -> "LearnerThread":
        """Load the student as `spec` says, from the newest checkpoint if there is one. notify: called in this thread.

        The other ranks of a `team` (`treeopo.learner.follower`) load the same, are told of each step and dismissed by
        `close`.

        Raises:
            ModelError: the model cannot be loaded or adapted.
        """
        team = team or Team()
        spec = replace(spec, checkpoint=checkpoints.latest())
        team.send(spec)
        # torch keeps its thread count per calling thread, so it is set in the one that computes.
        threads = share(spec.settings.threads)
        thread = ThreadPoolExecutor(1, "learner", initializer=torch.set_num_threads, initargs=(threads,))
        loop = asyncio.get_running_loop()

        def told(text: str) -> None:
            loop.call_soon_threadsafe(notify, text)

        return cls(thread, await loop.run_in_executor(thread, spec.load, team, told), checkpoints, team)

    @property
    def version(self) -> int:
        return self._learner.version

    @property
    def agreement(self) -> Agreement | None:
        """Of engine and learner about the last batch's tokens of its newest version; None if it had none."""
        return self._learner.agreement

    async def step(self, batch: TrainBatch) -> dict[str, float]:
        return await self._call(self._together, Learner.step, batch)

    async def reference_logprobs(self, sequences: Sequence[TrainSequence]) -> list[FloatArray]:
        return await self._call(self._run_model, Learner.reference_logprobs, sequences)

    async def policy_logprobs(self, sequences: Sequence[TrainSequence]) -> list[FloatArray]:
        return await self._call(self._run_model, Learner.policy_logprobs, sequences)

    async def save_policy(self, weight_format: WeightFormat, path: Path) -> None:
        """Write the policy in the form in which it travels: a safetensors file, or an adapter directory."""
        match weight_format:
            case WeightFormat.MERGED:
                await self._call(self._run_model, Learner.save_merged, path)
            case WeightFormat.ADAPTER:
                await self.save_adapter(path)
            case _:
                assert_never(weight_format)

    async def save_adapter(self, directory: Path) -> None:
        await self._call(self._learner.policy.save_adapter, directory)

    def checkpoint_beside(self, take: Callable[[int], Callable[[Path], None]]) -> None:
        """Have checkpoints hold more: `take(version)` is called where one is asked for; what it returns writes into the
        checkpoint's directory, in the learner's thread.
        """
        self._beside.append(take)

    async def checkpoint(self) -> None:
        writers = [self._learner.save_state, *(take(self._learner.version) for take in self._beside)]

        def write(directory: Path) -> None:
            for each in writers:
                each(directory)

        await self._call(self._checkpoints.save, self._learner.version, write)

    async def export(self, directory: Path, accompany: Callable[[Path], None]) -> None:
        """Write the trained adapter with what `accompany` adds to it; `directory` appears whole."""

        def write() -> None:
            partial = directory.with_name(f".{directory.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            self._learner.policy.save_adapter(partial)
            accompany(partial)
            shutil.rmtree(directory, ignore_errors=True)  # a run is complete once it is whole: this one is not
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
