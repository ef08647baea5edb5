"""The vLLM engine that a run starts for itself: one child process, reached through `AsyncLLM`.

merged    base and adapter, multiplied out by the learner, are loaded into the running engine between two tokens.
          Requests in flight go on; their cached keys and values are recomputed, and vLLM reports which version
          produced which token.
adapter   each version is a LoRA adapter of its own beside the base; a request keeps the one it began with.
"""

import asyncio
import logging
import multiprocessing
import os
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, assert_never
from uuid import uuid4

import numpy as np

from treeopo.engines.adapter_versions import AdapterVersions
from treeopo.engines.limits import check_room
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.stops import Ending, StopTokens
from treeopo.engines.vllm_process import check_positions, choose_weight_format, first_line, start_process
from treeopo.errors import EngineDeadError, EngineError, ModelError
from treeopo.records import Completion, FinishReason, FloatArray, IntArray, Request, WeightFormat
from treeopo.tasks import gather_or_cancel

SHUTDOWN_SECONDS = 5.0
"""An engine that has not ended by then is killed."""


class VllmEngine:
    """`Engine` port over vLLM's `AsyncLLM`. Make one with `start`, end it with `close`."""

    def __init__(
        self,
        llm: Any,
        options: EngineOptions,
        weight_format: WeightFormat,
        log: Path,
        thread: ThreadPoolExecutor | None,
    ) -> None:
        self.weight_format = weight_format
        self.restarts = 0
        self.log = log
        self._llm = llm
        self._options = options
        self._thread = thread
        self._requests = 0
        self._version = 0
        self._finished_tokens = 0
        self._adapters = AdapterVersions(llm)
        self._stops = StopTokens(llm.get_tokenizer())
        self._closed = False

    @classmethod
    def start(
        cls,
        model: str,
        options: EngineOptions | None = None,
        adapters: Adapters | None = None,
        thread: ThreadPoolExecutor | None = None,
        log: Path | None = None,
    ) -> "VllmEngine":
        """Start an engine on a hub name or local directory; it serves policy version 0. Takes 10 to 60 seconds.

        adapters: the policies that will be published, None if none will be as adapters. thread: ended by `close`; the
        kernel kills the engine when the thread that runs this ends. What the engine prints goes to `log`, a new file
        (a temporary one if None) that is kept if the engine fails, and named in the error.

        Raises:
            ModelError: vLLM cannot load the model, or vLLM itself is not installed.
        """
        options = options or EngineOptions()
        check_positions(model, options.max_model_tokens, options.trust_remote_code)
        log = log or new_log()
        try:
            weight_format = choose_weight_format(options, adapters)
            match weight_format:
                case WeightFormat.ADAPTER:
                    room = adapters
                case WeightFormat.MERGED:
                    room = None
                case _:
                    assert_never(weight_format)
            llm = start_process(model, options, room, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            logging.getLogger("vllm").setLevel(logging.ERROR)  # this process's half; the engine's goes to its log
        except ImportError as error:
            raise ModelError(f"vLLM cannot be imported ({error}); install treeopo[cpu] or treeopo[cuda]") from None
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"vLLM cannot serve {model!r}: {first_line(error)}; its log is {log}") from error
        return cls(llm, options, weight_format, log, thread)

    @property
    def versions_in_use(self) -> frozenset[int]:
        match self.weight_format:
            case WeightFormat.ADAPTER:
                return self._adapters.in_use
            case WeightFormat.MERGED:
                return frozenset({self._version})
            case _:
                assert_never(self.weight_format)

    @property
    def tokens(self) -> int:
        """Sampled so far, those of unfinished requests included: vLLM reports every step to this process anyway."""
        states = list(self._llm.output_processor.request_states.values())
        return self._finished_tokens + sum(int(state.detokenizer.num_output_tokens()) for state in states)

    async def generate(self, request: Request) -> Completion:
        """See `Generate`. A prompt that leaves no room for `max_tokens` is refused, never cut."""
        parameters = _parameters(request, self._stops.holding(request.stop))
        output, version = await self._run(request.token_ids, request.max_tokens, parameters)
        ending = self._stops.end(output.outputs[0].token_ids, request.stop)
        return _completion(output.outputs[0], ending, version)

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        """See `ScoreTokens`. vLLM scores a prompt, and samples a token after it that nobody asked for.

        Raises:
            EngineError: a sequence leaves no room for that token, or vLLM refused it. EngineDeadError: the engine died.
        """

        async def one(sequence: IntArray, prefix_length: int) -> FloatArray:
            output, _ = await self._run(sequence, 1, _scoring_parameters())
            return _prompt_logprobs(output, prefix_length)

        return await gather_or_cancel(map(one, token_ids, prefix_lengths))

    async def _run(self, token_ids: Sequence[int] | IntArray, max_tokens: int, parameters: Any) -> tuple[Any, int]:
        """vLLM's last `RequestOutput` for a prompt, and the version of the adapter that it was answered by."""
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError
        from vllm.v1.engine.exceptions import EngineGenerateError

        self._raise_if_closed()
        check_room(len(token_ids), max_tokens, self._options.max_model_tokens)
        self._requests += 1
        name = f"treeopo-{self._requests}"
        prompt = {"prompt_token_ids": [int(token) for token in token_ids]}
        try:
            with self._adapters.newest() as (version, adapter):
                async for output in self._llm.generate(prompt, parameters, name, lora_request=adapter):
                    final = output
        except VllmDeadError as error:
            raise self._dead() from error
        except (EngineGenerateError, VLLMValidationError) as error:
            raise EngineError(f"vLLM refused a request: {first_line(error)}") from error
        completion = final.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            self._raise_if_closed()
            raise EngineError(f"vLLM ended a request early ({completion.finish_reason})")
        self._finished_tokens += len(completion.token_ids)
        return final, version

    async def publish(self, version: int, path: Path) -> None:
        """See `PublishPolicy`. An engine that took only part of a merged policy counts as dead."""
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

        self._raise_if_closed()
        try:
            match self.weight_format:
                case WeightFormat.ADAPTER:
                    on_failure = EngineError
                    await self._adapters.load(version, path)
                case WeightFormat.MERGED:
                    on_failure = EngineDeadError
                    await self._load_merged(version, path)
                case _:
                    assert_never(self.weight_format)
        except VllmDeadError as error:
            raise self._dead() from error
        except Exception as error:  # whatever the engine process raised, it arrives as a bare Exception
            raise on_failure(f"vLLM cannot use policy version {version} at {path}: {first_line(error)}") from error
        self._version = version

    async def _load_merged(self, version: int, path: Path) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        # "keep" freezes requests between two tokens; clearing the cache makes them recompute under the new weights.
        await self._llm.pause_generation(mode="keep", clear_cache=True)
        await self._llm.start_weight_update()
        await self._llm.update_weights(WeightTransferUpdateRequest(update_info={"path": str(path)}))
        await self._llm.finish_weight_update(str(version))
        await self._llm.reset_prefix_cache()
        await self._llm.resume_generation()

    def peak_memory_mib(self) -> float:
        """Largest resident size of this process's engines so far, as Linux counts it; GPU memory is not in it."""
        return sum(_peak_mib(child.pid) for child in multiprocessing.active_children())

    async def close(self) -> None:
        """End the engine process; requests in flight raise `EngineDeadError`."""
        if self._closed:
            return
        self._closed = True
        if not self._llm.errored:
            self.log.unlink(missing_ok=True)
            await self._llm.abort(list(self._llm.output_processor.request_states), internal=True)
        if self._llm.output_handler is not None:
            # Still reading, it would take the end for a failure and print a traceback.
            self._llm.output_handler.cancel()
        await asyncio.to_thread(self._end_processes)
        # Its sockets are closed by now. vLLM leaves it to the garbage collector, with two threads and a warning.
        self._llm.engine_core.resources.ctx.destroy(linger=0)
        self._llm.shutdown = lambda: None  # its finaliser calls this again, in an interpreter that may be dying
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def _end_processes(self) -> None:
        processes = list(self._llm.engine_core.resources.engine_manager.processes)
        self._llm.shutdown(SHUTDOWN_SECONDS)
        for process in processes:
            process.join(SHUTDOWN_SECONDS)  # vLLM does not wait for one that it killed

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise EngineDeadError("the vLLM engine was closed")

    def _dead(self) -> EngineDeadError:
        return EngineDeadError(f"the vLLM engine process died; its log is {self.log}")


def new_log() -> Path:
    """Where an engine's output may go; nothing is there yet."""
    return Path(tempfile.gettempdir(), f"treeopo-engine-{uuid4().hex[:12]}.log")


def _parameters(request: Request, stop_tokens: list[int]) -> Any:
    """vLLM's `SamplingParams`: the whole distribution (no top-p, no top-k), log-probabilities of what was sampled.

    Stop strings are left to `stop_tokens` where there are any. Looking for strings would have this process, the
    learner's, make text token by token, and the engine go on until it is told.
    """
    stop = () if stop_tokens else request.stop
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        seed=request.seed,
        stop=list(stop) or None,
        stop_token_ids=stop_tokens or None,
        include_stop_str_in_output=True,
        detokenize=bool(stop),
        logprobs=0,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _scoring_parameters() -> Any:
    """One token at temperature 1, and the log-probability of each token of the prompt: there vLLM applies neither
    temperature nor penalties."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )


def _prompt_logprobs(output: Any, prefix_length: int) -> FloatArray:
    """Of the prompt's tokens after the prefix, (C,), from vLLM's `RequestOutput`; it has none for the first token."""
    after = list(zip(output.prompt_logprobs, output.prompt_token_ids, strict=True))[prefix_length:]
    return np.array([entry[token].logprob for entry, token in after], np.float32)


def _completion(output: Any, ending: Ending, version: int) -> Completion:
    """vLLM's `CompletionOutput`, up to its ending, as a record.

    version: the adapter's, or 0 for the weights that the engine started with; spans of merged weights, which vLLM
    reports, replace it.
    """
    token_ids = np.asarray(output.token_ids[: ending.length], dtype=np.int32)
    chosen = [output.logprobs[index][token].logprob for index, token in enumerate(token_ids.tolist())]
    versions = np.full(len(token_ids), version, dtype=np.int32)
    for span in output.weight_versions or ():
        if span.version != "default":
            versions[span.start : span.end] = int(span.version)
    return Completion(
        token_ids=token_ids,
        logprobs=np.asarray(chosen, dtype=np.float32),
        versions=versions,
        text=ending.text,
        finish_reason=FinishReason.STOP if ending.stopped else FinishReason(output.finish_reason),
    )


def _peak_mib(process: int | None) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0
