"""Attention over packed sequences, for every model of transformers that looks its attention up in the registry.

`pack_attention(model)` puts it in; `model(..., packing=packing)` then runs packed, and any other call as before.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from treeopo.learner.packing import Packing

NAME = "treeopo_packed"


def can_pack(model: PreTrainedModel) -> bool:
    """Whether each layer is plain causal attention found through the registry: no windows, no recurrences."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = "layer_types" not in config and getattr(config, "sliding_window", None) is not None
    return bool(type(model)._supports_attention_backend) and kinds == {"full_attention"} and not windowed


def pack_attention(model: PreTrainedModel) -> None:
    """Make `model` accept `packing`; calls without it use PyTorch's scaled dot-product attention as they did."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def packed_hidden_states(backbone: nn.Module, packing: Packing) -> Tensor:
    """Final hidden states (U, H) of the distinct tokens. The backbone must have been through `pack_attention`."""
    # A mask of four dimensions is handed through as it is; the packing says who attends to whom.
    no_mask = torch.empty(1, 1, 1, 1, device=packing.tokens_U.device)
    hidden: Tensor = backbone(
        input_ids=packing.tokens_U[None],
        position_ids=packing.positions_U[None],
        attention_mask=no_mask,
        use_cache=False,
        packing=packing,
    ).last_hidden_state
    return hidden[0]


def padded_hidden_states(backbone: nn.Module, packing: Packing) -> Tensor:
    """The same for a backbone that cannot pack: its buckets are run padded, shared tokens once for each sequence."""
    # Padding stands on the right, where causal layers never look, so there is no mask.
    hidden = [backbone(packing.tokens_U[grid], use_cache=False).last_hidden_state for grid in packing.grids]
    return packing.collect(hidden)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query (1, heads, U, D), key and value with their own number of heads; returns (1, U, heads, D)."""
    if packing is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return plain
    options |= {"is_causal": True}
    outputs = []
    for bucket in zip(*(packing.spread(_by_token(heads)) for heads in (query, key, value)), strict=True):
        heads = (x_RTH.view(*x_RTH.shape[:2], -1, query.shape[-1]).transpose(1, 2) for x_RTH in bucket)
        outputs.append(sdpa_attention_forward(module, *heads, None, **options)[0].flatten(2))
    return packing.collect(outputs).view(1, query.shape[2], query.shape[1], -1), None


def _by_token(x_1HUD: Tensor) -> Tensor:
    return x_1HUD[0].transpose(0, 1).flatten(1)
