"""Micro-batches that fit the memory: planned from the model's footprint and what is free, smaller once memory runs out.

    rungs    16384 ─▶ 8192 ─▶ 4096 ─▶ 2048 tokens ─▶ activations computed again: 16384 ─▶ ... ─▶ one sequence at a time

The first rung that fits is taken; a rung that turns out not to fit is left for the next one, and the pass begun again.
Nobody climbs back. Gradients are the same on every rung, as micro-batches add up to the batch's.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch

from treeopo.errors import OutOfMemoryError
from treeopo.learner.footprint import Footprint, generous, head_bytes, measure
from treeopo.learner.microbatch import MicroBatch
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.room import GIB, Room, held, is_out_of_memory, release, return_freed_blocks, room
from treeopo.learner.settings import LearnerSettings
from treeopo.ports import Notify

R = TypeVar("R")

LARGEST = {"cuda": 16384, "cpu": 2048}
"""Tokens of a micro-batch where there is room: more make a GPU no faster, and a CPU not from a quarter of that."""

USEFUL = {"cuda": 2048, "cpu": 512}
"""Rather than go below these, activations are computed again, which costs about a third of a step's time."""

_SHARDED = 2048  # a base that is cut over processes leaves little room, and they must all run as many passes
_SAFE = 0.9
"""Of the room, what a plan may take: for what kernels take for themselves, and for the neighbours."""

_KEPT = 3
"""What glibc has been seen to hold of a step, blocks freed and kept, as a multiple of what was alive."""


class Rung(NamedTuple):
    """Tokens of a micro-batch at most, and whether activations are computed again in the backward pass."""

    tokens: int
    recompute: bool


def ladder(settings: LearnerSettings, device: torch.device, *, sharded: bool) -> list[Rung]:
    """What `settings` allow, the fastest first."""
    asked = settings.microbatch_tokens
    top = min(LARGEST[device.type], _SHARDED if sharded else LARGEST[device.type]) if asked == "auto" else asked
    sizes = [top >> power for power in range(top.bit_length())]
    if settings.gradient_checkpointing != "auto" or sharded:
        return [Rung(size, settings.gradient_checkpointing in (True, "auto")) for size in sizes]
    plain = [size for size in sizes if size >= USEFUL[device.type]] or sizes[:1]
    return [*(Rung(size, False) for size in plain), *(Rung(size, True) for size in sizes)]


def forward_tokens(settings: LearnerSettings, device: torch.device) -> int:
    """Tokens of a pass without gradient, which keeps nothing."""
    return LARGEST[device.type] if settings.microbatch_tokens == "auto" else settings.microbatch_tokens


class Fitting:
    """Which micro-batches a policy's passes are cut into; `notify` is told in one line when they have to be smaller."""

    def __init__(
        self, policy: LoraPolicy, settings: LearnerSettings, *, share: bool, notify: Notify = lambda text: None
    ) -> None:
        self._policy = policy
        self._settings = settings
        self._share = share
        self._notify = notify
        self._ladder = ladder(settings, policy.device, sharded=policy.sharded)
        self._at = 0
        self._footprints: dict[bool, Footprint] = {}
        self._largest: tuple[int, bool] = (0, True)  # tokens of the largest micro-batch of the last cut, and if alone
        self._returns = False  # freed blocks, to the system
        self._held_at_first: int | None = None
        self._losses = 0
        self.predicted_peak: float | None = None
        """Bytes that the process should hold at the peak of the last planned step; None where nothing was planned."""
        policy.recompute_activations(self.rung.recompute)

    @property
    def rung(self) -> Rung:
        return self._ladder[self._at]

    def plan(self, cut: Callable[[int], list[MicroBatch]], beside: int) -> list[MicroBatch]:
        """The micro-batches of a training step, planned if there is something to decide.

        cut: of a number of tokens. beside: bytes that the optimisers will take during the step.

        Raises:
            OutOfMemoryError: a sequence alone does not fit.
        """
        micros = self.cut(cut)
        settings = self._settings
        can_decide = settings.microbatch_tokens == "auto" or settings.gradient_checkpointing == "auto"
        if not micros or self._policy.sharded or not can_decide or self._is_plenty(micros, beside):
            return micros
        self._return_freed_blocks()
        left, began = room(self._policy.device, settings.memory_gib), self._at
        while (need := self._need(micros, beside)) > _SAFE * left.size:
            if (below := self._below(settings.microbatch_tokens)) is not None:
                self._descend_to(below)
                micros = self.cut(cut)
            elif settings.microbatch_tokens == "auto" and need > left.size:
                raise OutOfMemoryError(self._too_long(need, left))
            else:
                break  # as was asked for, or as small as it gets: it may fit all the same
        self.predicted_peak = held(self._policy.device) + need
        if self._at != began:
            self._notify(f"{self._described()}: {need / GIB:.1f} GiB of the {_gib(left)} that {left.bound} leaves")
        return micros

    def cut(self, cut: Callable[[int], list[MicroBatch]]) -> list[MicroBatch]:
        """The micro-batches of a pass on the rung reached."""
        micros = cut(self.rung.tokens)
        largest = max((len(micro.packing.tokens_U) for micro in micros), default=0)
        self._largest = (largest, all(int(micro.row_C.max()) == 0 for micro in micros))
        return micros

    def survive(self, attempt: Callable[[], R]) -> R:
        """What `attempt` returns; when memory runs out within it, it is begun again a rung lower, at the random state
        that it began at. It must leave nothing behind that a second attempt would find.

        Raises:
            OutOfMemoryError: there is no lower rung; or the base is cut over processes, of which one cannot turn back.
        """
        device = self._policy.device
        on_gpu = device.type == "cuda"
        random = torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_gpu else None
        while True:
            try:
                return attempt()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # Out of the handler: its traceback holds every tensor of the attempt.
            release(device)
            self._losses += 1
            below = None if self._policy.sharded else self._below()
            left = room(device, self._settings.memory_gib)
            if below is None:
                raise OutOfMemoryError(self._too_long(None, left))
            self._return_freed_blocks()
            self._descend_to(below)
            self._notify(f"out of memory, {left.bound} leaves {_gib(left)}; once more: {self._described()}")
            torch.set_rng_state(random[0])
            if random[1] is not None:
                torch.cuda.set_rng_state(random[1], device)

    def metrics(self) -> dict[str, float]:
        """microbatch_tokens, recompute: the rung. out_of_memory: how often memory has run out since the start."""
        return {
            "learner/microbatch_tokens": float(self.rung.tokens),
            "learner/gradient_checkpointing": float(self.rung.recompute),
            "learner/out_of_memory": float(self._losses),
        }

    def _is_plenty(self, micros: Sequence[MicroBatch], beside: int) -> bool:
        """Whether there is so much room that nothing need be planned: for what a pass surely stays below, or for what
        is kept and freed in one as it was measured.
        """
        if self._returns or self.predicted_peak is not None:
            return False
        left = _SAFE * (room(self._policy.device, self._settings.memory_gib).size + self._kept())
        most = max(generous(self._policy, micro) for micro in micros) + beside
        return most <= left or _KEPT * self._need(micros, beside) <= left

    def _need(self, micros: Sequence[MicroBatch], beside: int) -> float:
        """Bytes that the largest of `micros` adds to what is held."""
        recompute = self.rung.recompute
        if recompute not in self._footprints:
            self._footprints[recompute] = measure(self._policy, share=self._share)
        found = self._footprints[recompute]
        return beside + max(found.of(micro) + head_bytes(self._policy, micro) for micro in micros)

    def _kept(self) -> int:
        """Bytes that earlier steps freed and glibc keeps for this one."""
        now = held(self._policy.device)
        self._held_at_first = min(now, self._held_at_first or now)
        return now - self._held_at_first if self._policy.device.type == "cpu" else 0

    def _return_freed_blocks(self) -> None:
        """From now on, and what earlier steps freed."""
        if self._policy.device.type == "cpu" and not self._returns:
            self._returns = True
            return_freed_blocks()
            release(self._policy.device)

    def _below(self, tokens: int | Literal["auto"] = "auto") -> int | None:
        """The next rung, of so many tokens, whose passes are smaller than those of the last cut, if there is one."""
        largest, alone = self._largest
        for index in range(self._at + 1, len(self._ladder)):
            rung = self._ladder[index]
            if tokens not in ("auto", rung.tokens):
                continue
            if rung.recompute != self.rung.recompute or (rung.tokens < largest and not alone):
                return index
        return None

    def _descend_to(self, index: int) -> None:
        self._at = index
        self._policy.recompute_activations(self.rung.recompute)

    def _described(self) -> str:
        again = ", activations computed again" if self.rung.recompute else ""
        return f"micro-batches of {self.rung.tokens} tokens{again}"

    def _too_long(self, need: float | None, left: Room) -> str:
        tokens, alone = self._largest
        what = f"a sequence of {tokens} tokens" if alone else f"a micro-batch of {tokens} tokens"
        wants = "does not fit" if need is None else f"needs {need / GIB:.2f} GiB, more than"
        return (
            f"out of memory: {what} {wants} the {_gib(left)} that {left.bound} leaves beside {_gib_held(self._policy)} "
            "held; give it more, lower rollout.max_sequence_tokens, learner.lora.rank or (beside an engine) "
            "engine.kv_cache_gib, or set learner.dtype=bfloat16"
        )


def _gib(left: Room) -> str:
    return f"{max(0.0, left.size) / GIB:.1f} GiB"


def _gib_held(policy: LoraPolicy) -> str:
    return f"{held(policy.device) / GIB:.1f} GiB"
