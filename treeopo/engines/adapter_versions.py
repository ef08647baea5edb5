"""LoRA adapters of several policy versions side by side in one vLLM engine.

vLLM's prefix cache is keyed by an adapter's name and path, not by its contents: the same name or path for other weights
would silently serve old keys and values. So each publication has a name, an id and a directory of its own, none is
overwritten, and none is removed while a request still reads it.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class AdapterVersions:
    """The adapters loaded in `llm` (an `AsyncLLM`), and how many requests use each. Version 0 is the bare base."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._published = 0
        self._newest = 0
        self._loaded: dict[int, Any] = {}  # version to LoRARequest
        self._readers: Counter[int] = Counter()

    @property
    def in_use(self) -> frozenset[int]:
        return frozenset({self._newest, *(version for version, readers in self._readers.items() if readers)})

    @contextmanager
    def newest(self) -> Iterator[tuple[int, Any]]:
        """The version that a request begins with and its `LoRARequest`, held until the `with` block ends."""
        version = self._newest
        self._readers[version] += 1
        try:
            yield version, self._loaded.get(version)
        finally:
            self._readers[version] -= 1

    async def load(self, version: int, directory: Path) -> None:
        """Serve the adapter in `directory` as `version` to requests that begin from now on; drop what nobody reads."""
        from vllm.lora.request import LoRARequest

        await self._retire(keep={self._newest, version})
        self._published += 1
        adapter = LoRARequest(f"treeopo-{version}-{self._published}", self._published, str(directory))
        # A request that names an adapter vLLM cannot load kills the engine; add_lora only raises.
        await self._llm.add_lora(adapter)
        replaced = self._loaded.get(version)
        self._loaded[version] = adapter
        self._newest = version
        if replaced is not None:
            await self._llm.remove_lora(replaced.lora_int_id)
        await self._retire(keep={version})

    async def _retire(self, keep: set[int]) -> None:
        for version in set(self._loaded) - keep:
            if not self._readers[version]:
                await self._llm.remove_lora(self._loaded.pop(version).lora_int_id)
