"""What vLLM loads in each of its processes (entry-point group `vllm.general_plugins`).

It registers the file weight-transfer backend. In an engine process that treeopo started it also asks the kernel for
AMX before the first kernel needs it (vLLM 0.32 on CPUs dies with SIGILL otherwise), keeps it from stumbling over numba,
makes the process die with its parent, keeps Ctrl-C for the parent alone, and samples no id that the tokenizer does not
have. In any other vLLM process it changes nothing.
"""

import ctypes
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

PARENT_VARIABLE = "TREEOPO_ENGINE_PARENT"
TOKENS_VARIABLE = "TREEOPO_ENGINE_TOKENS"
"""How many ids the tokenizer has, where the model's head has rows beyond."""

BACKEND = "treeopo_file"
_PR_SET_PDEATHSIG = 1


def register() -> None:
    """Entry point; vLLM may call it more than once in a process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "treeopo.engines.weight_files", "FileWeightTransfer")
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None and os.getpid() != int(parent):
        _die_with(int(parent))
        os.setpgid(0, 0)  # a terminal sends Ctrl-C to a whole process group; the parent stops its engine in good order
        _enable_amx()
        _tame_llvmlite()
        if TOKENS_VARIABLE in os.environ:
            _forbid_beyond(int(os.environ[TOKENS_VARIABLE]))


def _forbid_beyond(tokens: int) -> None:
    """Ids from `tokens` on are padding of the head: they get no probability, in samples and in scores of prompts."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    forward = LogitsProcessor.forward

    def within(self: Any, *arguments: Any, **named: Any) -> Any:
        logits = forward(self, *arguments, **named)
        if logits is not None and logits.shape[-1] > tokens:
            logits[..., tokens:] = -math.inf
        return logits

    LogitsProcessor.forward = within


def _die_with(trainer: int) -> None:
    """An engine without its trainer would run for ever: have the kernel end this process with its parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if _is_gone(trainer):  # it died before the kernel was asked
        os._exit(1)


def _is_gone(process: int) -> bool:
    """Whether a process is no more, or is dead and only waits for somebody to ask after it."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:
        return False  # no /proc to say more
    return state in "ZX"


def _enable_amx() -> None:
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


def _tame_llvmlite() -> None:
    """vLLM 0.32 on CPUs looks for kernels in every loaded module by its objects' `__dict__`. llvmlite's library object
    claims to have one, as it does any name, and ends the engine of a script whose main module imports numba.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is None:
        return
    library = type(ffi.lib)
    find = library.__getattr__

    def find_function(self: object, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return find(self, name)

    library.__getattr__ = find_function
