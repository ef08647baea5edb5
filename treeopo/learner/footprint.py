"""How much memory a forward and backward pass of the policy takes, found on a handful of tokens.

What a pass keeps for its backward pass depends on the architecture, the adapter's dropout, the dtypes and the kernels.
It is linear in tokens, but for attention that makes matrices. So four passes over 16 or 32 tokens, in which the bytes
that are alive are counted, tell what thousands will take.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from treeopo.learner.logprobs import chunk_rows
from treeopo.learner.microbatch import MicroBatch
from treeopo.learner.packing import pack
from treeopo.learner.policy import LoraPolicy
from treeopo.records import IntArray

_PROBE = 16
_LOGIT = 12
"""Bytes of each logit that exists at once: itself and its exponential in float32, and a copy in the weights' dtype; or
a quarter as many rows of two distributions with what autograd keeps of them (`losses/kl.py`)."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """Of each distinct token, of each place that a token has in a sequence, of each pair of places of a sequence, and
    of none of these.
    """

    fixed: float
    token: float
    place: float
    pair: float

    def of(self, tokens: int, grids: Sequence[tuple[int, int]]) -> float:
        """grids: rows and width of each bucket of sequences."""
        places, pairs = sum(rows * width for rows, width in grids), sum(rows * width**2 for rows, width in grids)
        return self.fixed + self.token * tokens + self.place * places + self.pair * pairs


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a forward and backward pass keeps between the two, and what passes on top of that at its peak."""

    kept: Bytes
    passing: Bytes
    packs: bool

    def of(self, micro: MicroBatch) -> float:
        """Bytes of a pass over `micro`, without what comes after the hidden states."""
        grids = [(int(grid.shape[0]), int(grid.shape[1])) for grid in micro.packing.grids]
        if self.packs:
            tokens = len(micro.packing.tokens_U)
            return self.kept.of(tokens, grids) + self.passing.of(tokens, grids)
        padded = sum(rows * width for rows, width in grids)  # run one bucket after the other
        return self.kept.of(padded, grids) + max(
            self.passing.of(rows * width, [(rows, width)]) for rows, width in grids
        )


def measure(policy: LoraPolicy, *, share: bool) -> Footprint:
    """The footprint of training passes as `policy` stands; not of one whose base is cut over processes.

    The random state, the gradients and the weights stay as they are.
    """
    one, other, long = np.arange(_PROBE), np.arange(1, _PROBE + 1), np.arange(2 * _PROBE)
    passes = [_pass(policy, rows, share) for rows in ([one], [one, other], [long], [one, one])]
    kept = _solved([kept for kept, _ in passes], share)
    passing = _solved([peak - kept for kept, peak in passes], share)
    return Footprint(kept, passing, policy.packs)


def _solved(measured: Sequence[float], share: bool) -> Bytes:
    """single = fixed + (token + place) n + pair n^2, and so on; differences leave one unknown each."""
    single, two, twice_as_long, shared = measured
    pair = max(0.0, (twice_as_long - two) / (2 * _PROBE**2))
    place = max(0.0, (shared - single) / _PROBE - pair * _PROBE) if share else 0.0
    token = max(0.0, (two - single) / _PROBE - place - pair * _PROBE)
    return Bytes(max(0.0, 2.0 * single - two), token, place, pair)


def head_bytes(policy: LoraPolicy, micro: MicroBatch) -> float:
    """Bytes of the logits of a chunk, and of hidden states and their slopes for each completion token."""
    vocabulary, hidden = policy.head.get_parameter("weight").shape
    completion = len(micro.position_C)
    return _LOGIT * vocabulary * min(completion, chunk_rows(vocabulary, policy.device)) + 12 * hidden * completion


def generous(policy: LoraPolicy, micro: MicroBatch) -> float:
    """Bytes that a pass over `micro` surely stays below, without running anything: several times the footprint, for the
    question whether there is any need to look closer. Infinite where the configuration does not tell.
    """
    config = policy.model.get_base_model().config.get_text_config()
    layers, hidden = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    heads = getattr(config, "num_attention_heads", None)
    inner = max(
        getattr(config, "intermediate_size", None) or 0,
        (getattr(config, "moe_intermediate_size", None) or 0) * (getattr(config, "num_experts_per_tok", None) or 0),
    )
    if not (policy.packs and layers and hidden and heads and inner):
        return float("inf")
    wide = max(hidden, heads * (getattr(config, "head_dim", None) or 0))
    places = sum(grid.numel() for grid in micro.packing.grids)
    a_token = 4 * int(layers) * (64 * int(wide) + 16 * int(inner))
    return a_token * max(places, len(micro.packing.tokens_U)) + head_bytes(policy, micro)


def _pass(policy: LoraPolicy, rows: Sequence[IntArray], share: bool) -> tuple[float, float]:
    """Bytes alive between the passes, and at the peak."""
    vocabulary = policy.head.get_parameter("weight").shape[0]
    packing, _ = pack([(row % vocabulary).astype(np.int32) for row in rows], share=share, device=policy.device)
    training = policy.model.training
    policy.model.train()
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad(), LiveBytes() as live:
        hidden_UH = policy.packed_hidden_states(packing)
        kept = live.now
        torch.autograd.grad(hidden_UH.sum(), policy.trainable, allow_unused=True)
    policy.model.train(training)
    return float(kept), float(live.peak)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made within it, as long as they are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.now = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (key := _storage(leaf)) not in given and key not in self._seen:
                storage = leaf.untyped_storage()
                self._seen.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        return made

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
