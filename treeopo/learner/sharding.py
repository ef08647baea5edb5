"""The frozen base cut over the processes of a team by FSDP2, for bases that do not fit one GPU.

    each decoder layer     1/N of every weight on each process; whole on all of them while it computes, then cut again
    everything else        on each process: embeddings, final norm and head, and the adapter, whose gradients are summed

A layer is gathered from all processes at once, so all of them run as many passes, in the same order.
"""

from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from treeopo.errors import ModelError
from treeopo.learner.packed_attention import can_pack


def shard_layers(model: PeftModel, device: torch.device) -> None:
    """Cut the base's decoder layers over all processes; a layer goes to `device` only to be cut.

    Raises:
        ModelError: the model does not name the class of its layers (transformers' `_no_split_modules`), or cannot pack,
            so that a micro-batch would take as many passes as its lengths happen to need.
    """
    base = model.get_base_model()
    if not can_pack(base):
        raise ModelError(
            f"{type(base).__name__} has attention that cannot be packed, which learner.fsdp needs; leave it out"
        )
    names = set(base._no_split_modules or ())
    layers = [module for module in base.modules() if type(module).__name__ in names]
    if not layers:
        raise ModelError(
            f"{type(base).__name__} does not name its layers, so learner.fsdp cannot cut them; leave it out"
        )
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    adapter = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=adapter)
    cut = {parameter for layer in layers for parameter in layer.parameters()}
    fully_shard(base.get_decoder(), mesh=mesh, ignored_params=set(model.parameters()) - cut | adapter)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())


def whole_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`model.named_modules()`, each with its weights whole while it is at hand. Every process runs it to its end."""
    gathered: FSDPModule | None = None
    for name, module in model.named_modules():
        if isinstance(module, FSDPModule):
            if gathered is not None:
                gathered.reshard()
            module.unshard()
            gathered = module
        yield name, module
    if gathered is not None:
        gathered.reshard()
