"""Settings of an inference engine; they need neither torch nor vLLM."""

from dataclasses import dataclass, field
from typing import Literal, assert_never

from treeopo.engines.server_settings import ServerSettings, base_url
from treeopo.errors import ModelError, require
from treeopo.plugins import is_path
from treeopo.records import WeightFormat
from treeopo.threads import Threads

ENGINES = {
    "vllm": "treeopo.engines.launch:start_vllm",
    "server": "treeopo.engines.launch:start_servers",
}
"""The engines that ship: values of `engine.kind`, and their start functions (`treeopo.engines.launch.StartEngine`)."""


@dataclass(frozen=True, slots=True)
class RestartSettings:
    """When the vLLM engine that a run started for itself counts as dead, and how often it is started again."""

    max_restarts: int = 3
    """Restarts in a row, without an answer in between, after which the run gives up; 0: it is never restarted."""

    backoff_seconds: float = 1.0
    """The wait before the first restart, doubled for each further one in a row."""

    hang_seconds: float = 120.0
    """Without a single token for so long, with requests waiting, the engine counts as dead; longer than the longest
    prefill or weight update takes."""

    def __post_init__(self) -> None:
        require(self.max_restarts >= 0, f"restart.max_restarts is {self.max_restarts}; it must not be negative")
        require(self.backoff_seconds >= 0, f"restart.backoff_seconds is {self.backoff_seconds}; use 0 or more")
        require(self.hang_seconds > 0, f"restart.hang_seconds is {self.hang_seconds}; it must be positive")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which inference engine serves the model, and how it is started."""

    kind: str = "auto"
    """vllm: an engine process started here. server: the vLLM servers of `engine.urls`. auto: server if there are URLs,
    else vllm. `package.module:function`: a start function of your own (docs/engines.md)."""

    max_model_tokens: int = 768
    """Prompt and completion together, at most; commands set it from their own limits."""

    max_concurrent: int = 128
    """Sequences that an engine decodes at once, and requests open at once to each server."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the weights and of the computation."""

    seed: int = 0
    """vLLM's own; what is sampled depends on the seed of each request alone."""

    threads: Threads = "auto"
    """OpenMP threads of an engine on a CPU; auto: all cores, half of them beside a learner, one for a tiny model."""

    kv_cache_gib: int = 1
    """Memory of the key-value cache of an engine on a CPU, in GiB."""

    gpu_memory_share: float = 0.5
    """The part of a GPU's memory that the engine takes (vLLM's gpu_memory_utilization)."""

    publish: Literal["auto", "merged", "adapter"] = "auto"
    """The form in which new policies reach the engine (weight sync): one file of base and adapter merged, or a LoRA
    adapter beside the base; auto chooses by device, and by what a server takes (docs/vllm.md)."""

    trust_remote_code: bool = False
    """Run the Python code that a model's repository brings, here and wherever else the run loads the model."""

    urls: tuple[str, ...] = ()
    """vLLM servers to use instead of starting an engine (docs/servers.md); what they run on is theirs."""

    server: ServerSettings = field(default_factory=ServerSettings)
    """Limits and patience towards each server of `engine.urls`."""

    restart: RestartSettings = RestartSettings()
    """When an engine that was started here is started again."""

    def __post_init__(self) -> None:
        known = ", ".join(ENGINES)
        require(
            self.kind in ("auto", *ENGINES) or is_path(self.kind),
            f"unknown engine.kind {self.kind!r}; use auto, {known}, or package.module:function for one of your own",
        )
        require(self.max_concurrent >= 1, f"engine.max_concurrent is {self.max_concurrent}; use 1 or more")
        require(self.threads == "auto" or self.threads >= 1, f"engine.threads is {self.threads}; it must be at least 1")
        require(self.kv_cache_gib >= 1, f"engine.kv_cache_gib is {self.kv_cache_gib}; it must be at least 1")
        share = self.gpu_memory_share
        require(0 < share <= 1, f"engine.gpu_memory_share is {share}; it must lie in (0, 1]")
        urls = [base_url(url) for url in self.urls]
        require(len(set(urls)) == len(urls), "engine.urls names a server twice; name each once")
        require(self.kind != "server" or bool(urls), "engine.kind is server; name one with --engine or engine.urls")
        require(
            self.kind != "vllm" or not urls,
            "engine.kind vllm starts an engine here and engine.urls names servers; leave one of the two out",
        )

    @property
    def slots(self) -> int:
        """Requests that all engines together work on at once."""
        return self.max_concurrent * max(1, len(self.urls))

    @property
    def own_dtype(self) -> str | None:
        """What an engine that is started here computes in; None for servers and engines of the user's."""
        return self.dtype if not self.urls and self.kind in ("auto", "vllm") else None


@dataclass(frozen=True, slots=True)
class Adapters:
    """What an engine must make room for where policies may reach it as adapters: LoRA of `rank`, `versions` at once.

    merged_because: a trait that no engine can use beside the base, so that they must be merged; None: there is none.
    """

    rank: int
    versions: int
    merged_because: str | None = None


def publishable_as(options: EngineOptions, adapters: Adapters) -> tuple[WeightFormat, ...]:
    """The forms in which these policies may reach an engine, by `engine.publish` and what they are.

    Raises:
        ModelError: adapters were asked for, and these must be merged.
    """
    match options.publish:
        case "adapter":
            if adapters.merged_because is not None:
                raise ModelError(
                    f"{adapters.merged_because} cannot be used by an engine beside the base; leave engine.publish out, "
                    "or set it to merged"
                )
            return (WeightFormat.ADAPTER,)
        case "merged":
            return (WeightFormat.MERGED,)
        case "auto":
            both = (WeightFormat.ADAPTER, WeightFormat.MERGED)
            return both if adapters.merged_because is None else (WeightFormat.MERGED,)
        case _:
            assert_never(options.publish)
