"""The vLLM engine that a run starts for itself: one child process, reached through `AsyncLLM`.

The policy travels by the merged carrier: base and adapter are merged by the learner and loaded into the running engine
between two tokens. Requests in flight go on; their cached keys and values are recomputed, and vLLM reports which
version produced which token.
"""

import logging
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from treeopo.engines.vllm_plugin import BACKEND, PARENT_VARIABLE
from treeopo.errors import EngineDeadError, EngineError, ModelError
from treeopo.records import Completion, FinishReason, Request

SHUTDOWN_SECONDS = 5.0
"""An engine that has not ended by then is killed."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to start an engine. `threads` and `kv_cache_gib` apply on CPUs, `gpu_memory_share` on GPUs."""

    max_model_tokens: int = 768
    max_concurrent: int = 128
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    seed: int = 0
    threads: int = 1
    kv_cache_gib: int = 1
    gpu_memory_share: float = 0.5


class VllmEngine:
    """`Engine` port over vLLM's `AsyncLLM`. Make one with `start`, end it with `close`."""

    def __init__(self, llm: Any, options: EngineOptions, log: Path) -> None:
        self._llm = llm
        self._options = options
        self._log = log
        self._requests = 0

    @classmethod
    def start(cls, model: str, options: EngineOptions | None = None) -> "VllmEngine":
        """Start an engine on a hub name or local directory; it serves policy version 0. Takes 10 to 60 seconds.

        What the engine prints goes to a log file that is kept if the engine fails, and named in the error.

        Raises:
            ModelError: vLLM cannot load the model, or vLLM itself is not installed.
        """
        options = options or EngineOptions()
        _check_positions(model, options.max_model_tokens)
        descriptor, name = tempfile.mkstemp(prefix="treeopo-engine-", suffix=".log")
        log = Path(name)
        try:
            with _engine_environment(options), _output_to(descriptor):
                llm = _start(model, options)
            logging.getLogger("vllm").setLevel(logging.ERROR)  # this process's half; the engine's goes to its log
        except ImportError as error:
            raise ModelError(f"vLLM cannot be imported ({error}); install treeopo[cpu] or treeopo[cuda]") from None
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"vLLM cannot serve {model!r}: {_first_line(error)}; its log is {log}") from error
        return cls(llm, options, log)

    async def generate(self, request: Request) -> Completion:
        """See `Generate`. A prompt that leaves no room for `max_tokens` is refused, never cut."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError
        from vllm.v1.engine.exceptions import EngineGenerateError

        room = self._options.max_model_tokens - len(request.token_ids)
        if request.max_tokens > room:
            raise EngineError(
                f"a prompt of {len(request.token_ids)} tokens leaves room for {room} of the {request.max_tokens} asked "
                f"for; raise the engine's {self._options.max_model_tokens} or lower the request"
            )
        parameters = SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,
            stop=list(request.stop) or None,
            include_stop_str_in_output=True,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._requests += 1
        prompt = {"prompt_token_ids": [int(token) for token in request.token_ids]}
        try:
            async for output in self._llm.generate(prompt, parameters, f"treeopo-{self._requests}"):
                final = output.outputs[0]
        except VllmDeadError as error:
            raise self._dead() from error
        except (EngineGenerateError, VLLMValidationError) as error:
            raise EngineError(f"vLLM refused a request: {_first_line(error)}") from error
        if final.finish_reason not in ("stop", "length"):
            raise EngineError(f"vLLM ended a request early ({final.finish_reason})")
        return _completion(final)

    async def publish(self, version: int, weights: Path) -> None:
        """See `PublishPolicy`. `weights` is a safetensors file with every parameter of the merged model."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

        try:
            # "keep" freezes requests between two tokens; clearing the cache makes them recompute under the new weights.
            await self._llm.pause_generation(mode="keep", clear_cache=True)
            await self._llm.start_weight_update()
            await self._llm.update_weights(WeightTransferUpdateRequest(update_info={"path": str(weights)}))
            await self._llm.finish_weight_update(str(version))
            await self._llm.reset_prefix_cache()
            await self._llm.resume_generation()
        except VllmDeadError as error:
            raise self._dead() from error

    def peak_memory_mib(self) -> float:
        """Largest resident size of this process's engines so far, as Linux counts it; GPU memory is not in it."""
        return sum(_peak_mib(child.pid) for child in multiprocessing.active_children())

    async def close(self) -> None:
        if not self._llm.errored:
            self._log.unlink(missing_ok=True)
        self._llm.shutdown(timeout=SHUTDOWN_SECONDS)
        self._llm.shutdown = lambda: None  # its finaliser calls this again, in an interpreter that may be dying

    def _dead(self) -> EngineDeadError:
        return EngineDeadError(f"the vLLM engine process died; its log is {self._log}")


def _check_positions(model: str, wanted: int) -> None:
    from transformers import AutoConfig

    try:
        positions = getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", None)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {model!r} cannot be loaded: {_first_line(error)}") from None
    if positions is not None and positions < wanted:
        raise ModelError(
            f"model {model!r} reads {positions} tokens, fewer than the {wanted} asked for: lower "
            "rollout.max_sequence_tokens (train), search.max_solution_tokens (mcts build) or max_new_tokens (eval)"
        )


def _start(model: str, options: EngineOptions) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.config import WeightTransferConfig
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    # On a CPU, a prefill in chunks kills the engine when its request has a seed (no generator offsets there).
    by_platform = (
        {"enforce_eager": True, "enable_chunked_prefill": False}
        if current_platform.is_cpu()
        else {"gpu_memory_utilization": options.gpu_memory_share}
    )
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
        **by_platform,
    )
    return AsyncLLM.from_engine_args(arguments)


def _completion(output: Any) -> Completion:
    """vLLM's `CompletionOutput` as a record; the weights that an engine starts with are version 0."""
    token_ids = np.asarray(output.token_ids, dtype=np.int32)
    chosen = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
    versions = np.zeros(len(token_ids), dtype=np.int32)
    for span in output.weight_versions or ():
        if span.version != "default":
            versions[span.start : span.end] = int(span.version)
    return Completion(
        token_ids=token_ids,
        logprobs=np.asarray(chosen, dtype=np.float32),
        versions=versions,
        text=output.text,
        finish_reason=FinishReason(output.finish_reason),
    )


@contextmanager
def _engine_environment(options: EngineOptions) -> Iterator[None]:
    """The variables an engine process must inherit; this process gets its own back afterwards.

    Two OpenMP threads that spin beside a busy neighbour run at a tenth of the speed of one, so an engine on a CPU gets
    `threads` (1 by default) and leaves the rest to the learner. torch.compile would spend seconds on one tiny function.
    """
    wanted = {
        PARENT_VARIABLE: str(os.getpid()),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    if not os.path.exists("/proc/driver/nvidia"):
        wanted |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
            "OMP_NUM_THREADS": str(options.threads),
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
    """Send this process's standard output and error to `descriptor`; processes started meanwhile keep it so."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for standard, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, standard)
            os.close(copy)


def _peak_mib(process: int | None) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _first_line(error: BaseException) -> str:
    """What went wrong in one line; of pydantic's report, the complaint itself."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    complaint = next((line for line in lines if "Value error, " in line), lines[0])
    return complaint.strip().removeprefix("Value error, ")
