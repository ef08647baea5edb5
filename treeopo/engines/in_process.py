"""The vLLM engine that a run starts for itself: one child process, reached through `AsyncLLM`.

The policy travels by the merged carrier: base and adapter are merged by the learner and loaded into the running engine
between two tokens. Requests in flight go on; their cached keys and values are recomputed, and vLLM reports which
version produced which token.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from treeopo.engines.vllm_plugin import BACKEND, PARENT_VARIABLE
from treeopo.errors import EngineDeadError, EngineError, ModelError
from treeopo.records import Completion, FinishReason, Request


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to start an engine. `threads` and `kv_cache_gib` apply on CPUs, `gpu_memory_share` on GPUs."""

    max_model_tokens: int = 768
    max_concurrent: int = 128
    dtype: str = "bfloat16"
    seed: int = 0
    threads: int = 1
    kv_cache_gib: int = 1
    gpu_memory_share: float = 0.5


class VllmEngine:
    """`Engine` port over vLLM's `AsyncLLM`. Make one with `start`, end it with `close`."""

    def __init__(self, llm: Any, options: EngineOptions) -> None:
        self._llm = llm
        self._options = options
        self._requests = 0
        self.tokens_generated = 0

    @classmethod
    def start(cls, model: str, options: EngineOptions | None = None) -> "VllmEngine":
        """Start an engine on a hub name or local directory; it serves policy version 0. Takes 10 to 60 seconds.

        Raises:
            ModelError: vLLM cannot load the model, or vLLM itself is not installed.
        """
        options = options or EngineOptions()
        with _engine_environment(options):
            try:
                from vllm import AsyncEngineArgs
                from vllm.config import WeightTransferConfig
                from vllm.platforms import current_platform
                from vllm.v1.engine.async_llm import AsyncLLM
            except ImportError as error:
                raise ModelError(f"vLLM cannot be imported ({error}); install treeopo[cpu] or treeopo[cuda]") from None
            on_cpu = current_platform.is_cpu()
            arguments = AsyncEngineArgs(
                model=model,
                dtype=options.dtype,  # type: ignore[arg-type]
                seed=options.seed,
                max_model_len=options.max_model_tokens,
                max_num_seqs=options.max_concurrent,
                enforce_eager=on_cpu,
                logprobs_mode="processed_logprobs",
                generation_config="vllm",  # the model's own sampling defaults would change the sampled distribution
                enable_prefix_caching=True,
                weight_transfer_config=WeightTransferConfig(backend=BACKEND),
                disable_log_stats=True,
                # On a CPU, a prefill in chunks kills the engine when its request has a seed (no generator offsets there).
                **({"enable_chunked_prefill": False} if on_cpu else {"gpu_memory_utilization": options.gpu_memory_share}),
            )
            try:
                llm = AsyncLLM.from_engine_args(arguments)
            except (OSError, ValueError, RuntimeError) as error:
                raise ModelError(f"vLLM cannot serve {model!r}: {_last_line(error)}") from error
        return cls(llm, options)

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
            raise EngineDeadError(f"the vLLM engine process died: {_last_line(error)}") from error
        except (EngineGenerateError, VLLMValidationError) as error:
            raise EngineError(f"vLLM refused a request: {_last_line(error)}") from error
        if final.finish_reason not in ("stop", "length"):
            raise EngineError(f"vLLM ended a request early ({final.finish_reason})")
        self.tokens_generated += len(final.token_ids)
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
            raise EngineDeadError(f"the vLLM engine process died: {_last_line(error)}") from error

    async def close(self) -> None:
        self._llm.shutdown()
        del self._llm  # its finaliser shuts down once more, and must not run in a dying interpreter


def _completion(output: Any) -> Completion:
    """vLLM's `CompletionOutput` as a record; the label of the weights that an engine starts with counts as version 0."""
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
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
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


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1]
