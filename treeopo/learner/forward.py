"""Forward passes of the policy: batches cut into packed micro-batches, log-probabilities of their completion tokens."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from treeopo.learner.forward_stats import ForwardStats, shares
from treeopo.learner.logprobs import logprobs_and_entropy, token_logprobs
from treeopo.learner.losses import Forward
from treeopo.learner.microbatch import MicroBatch, micro_batches
from treeopo.learner.policy import LoraPolicy, evaluating
from treeopo.learner.settings import LearnerSettings
from treeopo.records import FloatArray, TrainSequence

_PLACE = "place"  # where a token came from, whatever order the micro-batches put it in


class PolicyForward:
    """The forward passes of a `LoraPolicy` under `settings`.

    Raises:
        ConfigError: prefixes are to be shared, but the model cannot.
    """

    def __init__(self, policy: LoraPolicy, settings: LearnerSettings, temperature: float) -> None:
        self._policy = policy
        self._budget = settings.microbatch_tokens
        self._dropout = settings.lora.dropout > 0
        self._share = shares(settings.share_prefixes, policy)
        self._temperature = temperature
        if settings.gradient_checkpointing:
            policy.checkpoint_activations()

    def cut(self, sequences: Sequence[TrainSequence]) -> list[MicroBatch]:
        """The micro-batches of one pass over `sequences`."""
        return list(micro_batches(sequences, self._budget, self._policy.device, share=self._share))

    def __call__(self, micro: MicroBatch, stats: ForwardStats) -> Forward:
        """A training pass over a micro-batch; what was run is added to `stats`.

        Under dropout a shared token is dropped alike in every sequence that shares it.
        """
        current_C = None
        if self._dropout:
            with torch.no_grad(), evaluating(self._policy.model):
                current_C = self._logprobs(micro)
        hidden_CH, head = self._hidden(micro), self._policy.head
        logprobs_C, entropy_C = logprobs_and_entropy(hidden_CH, head, micro.target_C, self._temperature)
        stats.add(micro.packing, self._policy.packs, entropy_C)
        return Forward(logprobs_C, logprobs_C.detach() if current_C is None else current_C, hidden_CH, head)

    @torch.no_grad()
    def reference_logprobs(self, sequences: Sequence[TrainSequence]) -> list[FloatArray]:
        """Log-probabilities (C,) of each sequence's completion under the base model, its adapter switched off."""
        with self._policy.reference():
            return self._by_sequence(sequences)

    @torch.no_grad()
    def policy_logprobs(self, sequences: Sequence[TrainSequence]) -> list[FloatArray]:
        """Log-probabilities (C,) of each sequence's completion under the policy, without dropout: as engines sample."""
        with evaluating(self._policy.model):
            return self._by_sequence(sequences)

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

    def _hidden(self, micro: MicroBatch) -> Tensor:
        return embedding(micro.position_C, self._policy.packed_hidden_states(micro.packing))

    def _logprobs(self, micro: MicroBatch) -> Tensor:
        return token_logprobs(self._hidden(micro), self._policy.head, micro.target_C, self._temperature)
