"""Forward passes of the policy: batches cut into packed micro-batches, log-probabilities of their completion tokens."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from treeopo.learner.fitting import Fitting
from treeopo.learner.forward_stats import ForwardStats, shares
from treeopo.learner.logprobs import logprobs_and_entropy, token_logprobs
from treeopo.learner.losses import Forward
from treeopo.learner.microbatch import MicroBatch, micro_batches
from treeopo.learner.policy import LoraPolicy, evaluating
from treeopo.learner.prefix_sample import body_per_head, sample_prefixes
from treeopo.learner.settings import LearnerSettings
from treeopo.ports import Notify
from treeopo.records import FloatArray, TrainSequence

_PLACE = "place"  # where a token came from, whatever order the micro-batches put it in


class PolicyForward:
    """The forward passes of a `LoraPolicy` under `settings`.

    Raises:
        ConfigError: prefixes are to be shared, but the model cannot.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        settings: LearnerSettings,
        temperature: float,
        notify: Notify = lambda text: None,
    ) -> None:
        self._policy = policy
        self._dropout = settings.lora.dropout > 0
        self._prefix_gradient = settings.prefix_loss > 0
        self._share = shares(settings.share_prefixes, policy)
        self._temperature = temperature
        self._body_per_head = body_per_head(policy)
        self.fitting = Fitting(policy, settings, share=self._share, notify=notify)

    def measured(self, sequences: Sequence[TrainSequence], number: int) -> Sequence[TrainSequence]:
        """The sequences of batch `number`, some without their `question_length`: those whose prefixes are left out of
        the figures. None is left out where prefixes are learned.
        """
        return sequences if self._prefix_gradient else sample_prefixes(sequences, number, self._body_per_head)

    def cut(self, sequences: Sequence[TrainSequence]) -> list[MicroBatch]:
        """The micro-batches of one pass over `sequences`."""
        return self.fitting.cut(partial(self._cut, sequences))

    def plan(self, sequences: Sequence[TrainSequence], beside: int) -> list[MicroBatch]:
        """Those of a training step (`Fitting.plan`)."""
        return self.fitting.plan(partial(self._cut, sequences), beside)

    def _cut(self, sequences: Sequence[TrainSequence], tokens: int) -> list[MicroBatch]:
        return list(micro_batches(sequences, tokens, self._policy.device, share=self._share))

    def __call__(self, micro: MicroBatch, stats: ForwardStats) -> Forward:
        """A training pass over a micro-batch; what was run is added to `stats`.

        Under dropout a shared token is dropped alike in every sequence that shares it.
        """
        current = None
        if self._dropout:
            with torch.no_grad(), evaluating(self._policy.model):
                current = self._predict(micro, prefixes=True)
        own = self._predict(micro, prefixes=self._prefix_gradient or current is None)
        current = current or own
        stats.add(micro.packing, self._policy.packs, own.entropy_C)
        stats.add_prefixes(micro.prefix, current.prefix_X.detach())
        return Forward(own.logprobs_C, current.logprobs_C.detach(), own.hidden_CH, self._policy.head, own.prefix_X)

    @torch.no_grad()
    def reference_logprobs(self, sequences: Sequence[TrainSequence]) -> list[FloatArray]:
        """Log-probabilities (C,) of each sequence's completion under the base model, its adapter switched off."""
        with self._policy.reference():
            return self.fitting.survive(partial(self._by_sequence, sequences))

    @torch.no_grad()
    def policy_logprobs(self, sequences: Sequence[TrainSequence]) -> list[FloatArray]:
        """Log-probabilities (C,) of each sequence's completion under the policy, without dropout: as engines sample."""
        with evaluating(self._policy.model):
            return self.fitting.survive(partial(self._by_sequence, sequences))

    def _by_sequence(self, sequences: Sequence[TrainSequence]) -> list[FloatArray]:
        offsets = np.cumsum([0, *(row.completion_length for row in sequences)])
        places = [
            replace(row, extras={_PLACE: np.arange(start, start + row.completion_length, dtype=np.float64)})
            for row, start in zip(sequences, offsets, strict=False)
        ]
        found = torch.empty(int(offsets[-1]))
        for micro in self.cut(places):
            found[micro.extras_C[_PLACE].long().cpu()] = self._logprobs(micro).float().cpu()
        return np.split(found.numpy(), offsets[1:-1])

    def _predict(self, micro: MicroBatch, *, prefixes: bool) -> "_Predictions":
        """One pass of the model; with `prefixes` of their tokens too, with gradient where that is used."""
        head, hidden_UH = self._policy.head, self._policy.packed_hidden_states(micro.packing)
        hidden_CH = embedding(micro.position_C, hidden_UH)
        logprobs_C, entropy_C = logprobs_and_entropy(hidden_CH, head, micro.target_C, self._temperature)
        prefix_X = hidden_UH.new_empty(0)
        if prefixes:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._prefix_gradient):
                hidden_XH = embedding(micro.prefix.position_X, hidden_UH)
                prefix_X = token_logprobs(hidden_XH, head, micro.prefix.target_X, self._temperature)
        return _Predictions(hidden_CH, logprobs_C, entropy_C, prefix_X)

    def _logprobs(self, micro: MicroBatch) -> Tensor:
        hidden_CH = embedding(micro.position_C, self._policy.packed_hidden_states(micro.packing))
        return token_logprobs(hidden_CH, self._policy.head, micro.target_C, self._temperature)


class _Predictions(NamedTuple):
    """What a pass says of the completion tokens and of the prefixes' step tokens."""

    hidden_CH: Tensor
    logprobs_C: Tensor
    entropy_C: Tensor
    prefix_X: Tensor
