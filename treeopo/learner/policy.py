"""The student: a frozen base model with a LoRA adapter, and the two forms in which it leaves the learner."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from treeopo.errors import ModelError
from treeopo.learner.adapters import load_adapter, of_experts
from treeopo.learner.packed_attention import can_pack, pack_attention, packed_hidden_states, padded_hidden_states
from treeopo.learner.packing import Packing
from treeopo.learner.rounding import merged_weight
from treeopo.learner.settings import LoraSettings
from treeopo.learner.sharding import is_sharded, shard_layers, whole_modules
from treeopo.learner.targets import find_targets


class LoraPolicy:
    """Frozen base weights in `dtype`, adapter weights in float32. `model` is the `PeftModel` around both; served_dtype
    that of the engine which policies are published to, None if that is not known.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.served_dtype: torch.dtype | None = None
        self.sharded = is_sharded(model)
        self.device = next(model.parameters()).device
        self.packs = can_pack(model.get_base_model())
        if self.packs:
            pack_attention(model.get_base_model())

    @classmethod
    def load(
        cls,
        name: str,
        lora: LoraSettings,
        *,
        dtype: torch.dtype,
        device: torch.device,
        adapter: Path | None = None,
        trust_remote_code: bool = False,
        sharded: bool = False,
    ) -> "LoraPolicy":
        """Load the base model `name` (hub name or directory) with a fresh adapter, or the one saved at `adapter`.

        sharded: cut it over the processes of the team, which all load it and have met (`treeopo.learner.sharding`).

        Raises:
            ModelError: the model cannot be loaded, or transforms its logits in a way the learner does not follow; or
                the adapter is not of this model.
        """
        base = load_base(name, dtype, trust_remote_code)
        base.config.use_cache = False
        if adapter is not None:
            model = load_adapter(base, name, adapter, trainable=True)
        else:
            settings = LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=find_targets(base, name, lora.targets),
                bias="none",
                task_type="CAUSAL_LM",
            )
            try:
                model = get_peft_model(base, settings, autocast_adapter_dtype=True)
            except ValueError as error:
                raise ModelError(f"LoRA cannot be applied to {name!r}: {error}") from None
        _check_adapted(model, name)
        # As it will be named in what is saved: a directory by its whole path, to be found from anywhere.
        model.peft_config["default"].base_model_name_or_path = os.path.abspath(name) if os.path.isdir(name) else name
        if sharded:
            shard_layers(model, device)
        return cls(model.to(device))

    @property
    def trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def hidden_states(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Final hidden states (B, T, H) of the backbone, adapter included."""
        backbone = self.model.get_base_model().get_decoder()
        hidden: Tensor = backbone(input_ids=input_ids_BT, attention_mask=attention_mask_BT).last_hidden_state
        return hidden

    def packed_hidden_states(self, packing: Packing) -> Tensor:
        """Final hidden states (U, H) of packed tokens; computed on padded sequences if the model does not pack."""
        backbone = self.model.get_base_model().get_decoder()
        return packed_hidden_states(backbone, packing) if self.packs else padded_hidden_states(backbone, packing)

    def recompute_activations(self, wanted: bool) -> None:
        """Whether to keep but one hidden state per layer and token, and compute the rest again in the backward pass."""
        base = self.model.get_base_model()
        if wanted:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        elif base.is_gradient_checkpointing:
            base.gradient_checkpointing_disable()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within it the policy is its own base model, without dropout: the reference, and no second copy of it."""
        with self.model.disable_adapter(), evaluating(self.model):
            yield

    @property
    def head(self) -> nn.Module:
        """The map from hidden states to logits (H to V)."""
        head: nn.Module = self.model.get_base_model().get_output_embeddings()
        return head

    def save_adapter(self, directory: Path) -> None:
        """Write the adapter as PEFT does: safetensors and adapter_config.json.

        Embeddings are never among them: the vocabulary is the base's, and no adapter sits on them (`_check_adapted`).
        PEFT, left to find that out, asks the hub for the base's configuration at each save.
        """
        self.model.save_pretrained(str(directory), save_embedding_layers=False)

    @torch.no_grad()
    def save_merged(self, path: Path | None) -> None:
        """Write the policy's weights under their checkpoint names, adapted ones as W + (alpha/r) B A, rounded
        without bias (`treeopo.learner.rounding`).

        Embeddings and the head are left out: no adapter touches them, so an engine that loaded the base has them, and
        they are most of a small model. So are a mixture's experts, which vLLM does not load twice rightly. The file
        appears whole. Without a path nothing is written; of a sharded policy
        every process must call this, and one of them with a path.
        """
        merged: dict[str, Tensor] = {}
        for name, module in whole_modules(self.model.get_base_model()):
            if path is None:
                continue
            if isinstance(module, LoraLinear):
                base = module.get_base_layer()
                delta = module.get_delta_weight(module.active_adapters[0])
                own = {"weight": merged_weight(base.weight, delta, self.served_dtype), "bias": base.bias}
            elif isinstance(module, nn.Embedding) or module is self.head or of_experts(name) or _is_adapter(name):
                own = {}
            else:
                own = dict(module.named_parameters(recurse=False))
            merged |= {f"{name}.{key}": _copy(tensor) for key, tensor in own.items() if tensor is not None}
        if path is not None:
            partial = path.with_suffix(".partial")
            save_file(merged, str(partial))
            os.replace(partial, path)


def _is_adapter(name: str) -> bool:
    """Whether the module of this name is part of an adapted one."""
    return ".lora_" in name or name.endswith(".base_layer")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout: the distribution the engine samples from."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _check_adapted(model: PeftModel, name: str) -> None:
    """Every adapter must be a low-rank sum on a linear layer below the head, or `save_merged` would not carry it."""
    head = model.get_base_model().get_output_embeddings()
    for path, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        if module is head or of_experts(path) or not isinstance(module, LoraLinear):
            raise ModelError(f"an adapter on {path} of {name!r} cannot be published; name linear layers below the head")
        if module.lora_variant or any(module.lora_bias.values()):
            raise ModelError(f"the adapter on {path} of {name!r} is more than LoRA's A and B, and cannot be published")


def load_base(name: str, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """A causal language model whose logits are what its head makes of the hidden states, and no more: the learner
    computes them so.

    Raises:
        ModelError: it cannot be loaded, or scales or caps its logits.
    """
    base = load_model(name, dtype, trust_remote_code)
    for trait, neutral in (("final_logit_softcapping", None), ("logit_scale", 1), ("logits_scaling", 1)):
        if getattr(base.config, trait, None) not in (None, 0, neutral):
            raise ModelError(f"model {name!r} sets {trait}, which the learner does not apply; choose another model")
    return base


def load_model(name: str, dtype: torch.dtype | Literal["auto"], trust_remote_code: bool = False) -> Any:
    """A causal language model from a hub name or directory; code that it brings is run only if that is asked for.

    dtype: auto, what its configuration or its files say.

    Raises:
        ModelError: it cannot be loaded, lacks weights, or is an adapter, under which transformers loads the base.
    """
    disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:  # quantised weights ask for packages of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"model {name!r} cannot be loaded: {reason}") from None
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"model {name!r} is an adapter, not a whole model; merge it into its base first")
    if lacking := sorted(found["missing_keys"]):  # transformers makes them at random, and says so in a warning
        others = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ModelError(
            f"model {name!r} lacks the tensor {lacking[0]}{others} of a causal language model; take another"
        )
    return model
