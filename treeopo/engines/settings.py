"""Settings of an inference engine; they need neither torch nor vLLM."""

from dataclasses import dataclass, field
from typing import Literal

from treeopo.engines.server_settings import ServerSettings, base_url
from treeopo.errors import require


@dataclass(frozen=True, slots=True)
class RestartSettings:
    """When an engine is given up. max_restarts: in a row, without an answer in between (0: never restarted).
    backoff_seconds: waited before the first, doubled for each further one. hang_seconds: without a single token, with
    requests waiting, after which an engine counts as dead; longer than the longest prefill or publication.
    """

    max_restarts: int = 3
    backoff_seconds: float = 1.0
    hang_seconds: float = 120.0

    def __post_init__(self) -> None:
        require(self.max_restarts >= 0, f"restart.max_restarts is {self.max_restarts}; it must not be negative")
        require(self.backoff_seconds >= 0, f"restart.backoff_seconds is {self.backoff_seconds}; use 0 or more")
        require(self.hang_seconds > 0, f"restart.hang_seconds is {self.hang_seconds}; it must be positive")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to start an engine. `threads` and `kv_cache_gib` apply on CPUs, `gpu_memory_share` on GPUs.

    publish: the carrier of new policies (`treeopo.records.Carrier`); auto chooses by device (docs/vllm.md).
    trust_remote_code: run the Python code that a model's repository brings, here and wherever else the run loads it.
    urls: vLLM servers to use instead of starting an engine (docs/servers.md), treated as `server` says; what they run
    on is theirs.
    """

    max_model_tokens: int = 768
    max_concurrent: int = 128
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    seed: int = 0
    threads: int = 1
    kv_cache_gib: int = 1
    gpu_memory_share: float = 0.5
    publish: Literal["auto", "merged", "adapter"] = "auto"
    trust_remote_code: bool = False
    urls: tuple[str, ...] = ()
    server: ServerSettings = field(default_factory=ServerSettings)
    restart: RestartSettings = RestartSettings()

    def __post_init__(self) -> None:
        require(self.max_concurrent >= 1, f"engine.max_concurrent is {self.max_concurrent}; use 1 or more")
        require(self.threads >= 1, f"engine.threads is {self.threads}; it must be at least 1")
        require(self.kv_cache_gib >= 1, f"engine.kv_cache_gib is {self.kv_cache_gib}; it must be at least 1")
        share = self.gpu_memory_share
        require(0 < share <= 1, f"engine.gpu_memory_share is {share}; it must lie in (0, 1]")
        urls = [base_url(url) for url in self.urls]
        require(len(set(urls)) == len(urls), "engine.urls names a server twice; name each once")

    @property
    def slots(self) -> int:
        """Requests that all engines together work on at once."""
        return self.max_concurrent * max(1, len(self.urls))


@dataclass(frozen=True, slots=True)
class Adapters:
    """What an engine must make room for where policies may reach it as adapters: LoRA of `rank`, `versions` at once."""

    rank: int
    versions: int
