"""Starting vLLM's engine process: its environment, its arguments and where its output goes."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from treeopo.engines.settings import Adapters, EngineOptions, publishable_as
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.engines.vllm_plugin import BACKEND, PARENT_VARIABLE, TOKENS_VARIABLE
from treeopo.errors import ModelError
from treeopo.records import WeightFormat
from treeopo.threads import share

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The LoRA ranks that vLLM makes room for; an adapter of a lower one fits into the next."""


def choose_weight_format(options: EngineOptions, adapters: Adapters | None) -> WeightFormat:
    """The one asked for; by device otherwise, for the reasons in docs/vllm.md."""
    from vllm.platforms import current_platform

    if adapters is None:
        return WeightFormat.MERGED
    formats = publishable_as(options, adapters)
    if options.publish == "auto" and (current_platform.is_cpu() or adapters.rank > VLLM_RANKS[-1]):
        return WeightFormat.MERGED
    if formats[0] is WeightFormat.ADAPTER and adapters.rank > VLLM_RANKS[-1]:
        raise ModelError(f"engine.publish adapter: vLLM serves LoRA of rank {VLLM_RANKS[-1]}, not {adapters.rank}")
    return formats[0]


def start_process(model: str, options: EngineOptions, adapters: Adapters | None, descriptor: int) -> Any:
    """vLLM's `AsyncLLM` with its engine process, whose output goes to `descriptor` (closed here).

    adapters: room for LoRA adapters, None for an engine without.

    Raises:
        ImportError: vLLM is not installed. OSError, ValueError, RuntimeError: it cannot serve the model.
    """
    with _engine_environment(options, _tokens_of_padded(model, options)), _output_to(descriptor):
        return _start(model, options, adapters)


def _start(model: str, options: EngineOptions, adapters: Adapters | None) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.config import WeightTransferConfig
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    # On a CPU, a prefill in chunks kills the engine when its request has a seed (no generator offsets there). Cached
    # blocks are of 128 tokens by default, longer than many a prefix of a short problem; 32 is the least it takes.
    by_platform: dict[str, Any] = (
        {"enforce_eager": True, "enable_chunked_prefill": False, "block_size": 32}
        if current_platform.is_cpu()
        else {"gpu_memory_utilization": options.gpu_memory_share}
    )
    if adapters is not None:
        by_platform |= {
            "enable_lora": True,
            "max_loras": adapters.versions,
            "max_lora_rank": next(rank for rank in VLLM_RANKS if rank >= adapters.rank),
        }
    arguments = AsyncEngineArgs(
        model=model,
        dtype=options.dtype,
        seed=options.seed,
        max_model_len=options.max_model_tokens,
        max_num_seqs=options.max_concurrent,
        logprobs_mode="processed_logprobs",  # of the distribution sampled from, temperature included
        generation_config="vllm",  # the model's own sampling defaults would change that distribution
        enable_prefix_caching=True,
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        disable_log_stats=True,
        trust_remote_code=options.trust_remote_code,
        **by_platform,
    )
    return AsyncLLM.from_engine_args(arguments)


def check_positions(model: str, wanted: int, trust_remote_code: bool) -> None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        positions = getattr(config, "max_position_embeddings", None)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {model!r} cannot be loaded: {first_line(error)}") from None
    if positions is not None and positions < wanted:
        raise ModelError(
            f"model {model!r} reads {positions} tokens, fewer than the {wanted} asked for: lower "
            "rollout.max_sequence_tokens (train), search.max_solution_tokens (mcts build) or max_new_tokens (eval)"
        )


def _tokens_of_padded(model: str, options: EngineOptions) -> int | None:
    """How many ids the tokenizer has, None where the model has no more."""
    try:
        tokenizer = ModelTokenizer(model, options.trust_remote_code)
    except ModelError:
        return None  # vLLM says what is wrong with it
    tokens = len(tokenizer.hf)
    return tokens if tokens < tokenizer.vocabulary_size else None


@contextmanager
def _engine_environment(options: EngineOptions, tokens: int | None) -> Iterator[None]:
    """The variables an engine process must inherit; this process gets its own back afterwards.

    Two OpenMP threads that spin beside a busy neighbour run at a tenth of the speed of one, so an engine on a CPU gets
    `threads` and leaves the rest to the learner. torch.compile would spend seconds on one tiny function.
    """
    wanted = {
        PARENT_VARIABLE: str(os.getpid()),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # `stage` reads the log. TRL, once imported, has asked for errors alone.
        "VLLM_LOGGING_LEVEL": "DEBUG" if os.environ.get("VLLM_LOGGING_LEVEL") == "DEBUG" else "INFO",
    }
    if tokens is not None:
        wanted[TOKENS_VARIABLE] = str(tokens)
    if not os.path.exists("/proc/driver/nvidia"):
        wanted |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
            "OMP_NUM_THREADS": str(share(options.threads)),
            "TORCH_COMPILE_DISABLE": "1",
        }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _output_to(descriptor: int) -> Iterator[None]:
    """Send this process's standard output and error to `descriptor`, which is closed here; processes started meanwhile
    keep it so. Who has a copy of the originals writes on to where they led.
    """
    standard = sys.__stdout__ or sys.stdout  # a screen may have put its own in their place
    with ExitStack() as stack:
        stack.callback(os.close, descriptor)
        for stream in (sys.stdout, sys.stderr, standard):
            stream.flush()
        for number in (1, 2):
            copy = os.dup(number)
            stack.callback(os.close, copy)
            stack.callback(os.dup2, copy, number)
            os.dup2(descriptor, number)
        stack.callback(standard.flush)
        stack.enter_context(redirect_stdout(standard))
        stack.enter_context(redirect_stderr(standard))
        for handler in logging.getLogger("vllm").handlers:
            if isinstance(handler, logging.StreamHandler) and (before := handler.setStream(standard)) is not None:
                stack.callback(handler.setStream, before)
        yield


STAGES = {
    "Resolved architecture": "starting its process",
    "Initializing a V1 LLM engine": "preparing the device",
    "Starting to load model": "loading weights",
    "KV cache size": "warming up",
    "init engine": "ready",
}
"""What stands in the log of a vLLM engine that starts, and what it is at from there on; first it imports vLLM."""


def stage(log: str) -> str:
    """What an engine with this log is at."""
    reached = [doing for sign, doing in STAGES.items() if sign in log]
    return reached[-1] if reached else "importing vLLM"


def first_line(error: BaseException) -> str:
    """What went wrong in one line; of pydantic's report, the complaint itself."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    complaint = next((line for line in lines if "Value error, " in line), lines[0])
    return complaint.strip().removeprefix("Value error, ")
