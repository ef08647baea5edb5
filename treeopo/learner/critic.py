"""V(s_t), the value of the state before each completion token: a head on the policy's backbone, or a small decoder."""

from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import LlamaConfig, LlamaModel

from treeopo.learner.losses import Forward
from treeopo.learner.microbatch import MicroBatch
from treeopo.learner.packed_attention import padded_hidden_states
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import CriticSettings


class ValueHead(nn.Module):
    """One linear map of the policy's final hidden states, zero at the start.

    The hidden states are detached: value errors never move the policy, so that warming the critic up leaves the policy
    exactly as it was and the two optimisers share no weight. The price is a critic that reads features made for
    predicting tokens; the decoder has its own.
    """

    def __init__(self, policy: LoraPolicy) -> None:
        super().__init__()
        self.out = _zero_linear(policy.model.get_base_model().config.hidden_size)

    def forward(self, micro: MicroBatch, forward: Forward) -> Tensor:
        value_C: Tensor = self.out(forward.hidden_CH.detach().float())[:, 0]
        return value_C


class ValueDecoder(nn.Module):
    """A Llama decoder of its own, from scratch, over the same tokens (Tree-OPO App. B)."""

    def __init__(self, policy: LoraPolicy, settings: CriticSettings) -> None:
        super().__init__()
        base = policy.model.get_base_model().config
        config = LlamaConfig(
            vocab_size=base.vocab_size,
            hidden_size=settings.width,
            intermediate_size=4 * settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=max(1, settings.width // 64),
            max_position_embeddings=base.max_position_embeddings,
            use_cache=False,
        )
        self.decoder = LlamaModel(config)
        self.out = _zero_linear(settings.width)

    def forward(self, micro: MicroBatch, forward: Forward) -> Tensor:
        hidden_UH = padded_hidden_states(self.decoder, micro.packing)
        value_C: Tensor = self.out(embedding(micro.position_C, hidden_UH))[:, 0]
        return value_C


def make_critic(policy: LoraPolicy, settings: CriticSettings) -> nn.Module:
    """The critic that `settings.architecture` names, in float32 on the policy's device."""
    match settings.architecture:
        case "head":
            critic: nn.Module = ValueHead(policy)
        case "decoder":
            critic = ValueDecoder(policy, settings)
        case _ as unknown:
            assert_never(unknown)
    return critic.to(device=policy.device, dtype=torch.float32)


def _zero_linear(width: int) -> nn.Linear:
    """V = 0 before the first step, so that the first targets are the rewards alone."""
    linear = nn.Linear(width, 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
