"""Weight sync by file: the learner writes each new policy in the engine's form, the engine loads it (`publish`), and
the file is deleted once no engine reads it any more. Also known as weight transfer or weight update.
"""

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import assert_never

from treeopo.ports import PublishPolicy
from treeopo.records import WeightFormat

Save = Callable[[WeightFormat, Path], Awaitable[None]]
"""Write the current policy to a path: a safetensors file, or an adapter directory."""


class PolicyFiles:
    """Publishes through files under `directory`, which it owns: what an earlier run left there goes first.

    The newest policy stays on disk, because a restarted engine needs it again; an older one goes at the first
    publication that finds it unused.
    """

    def __init__(self, engine: PublishPolicy, save: Save, directory: Path) -> None:
        self._engine = engine
        self._save = save
        self._directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self._paths: dict[int, Path] = {}
        self._written = 0

    async def publish(self, version: int) -> None:
        """Write the current policy and have the engine serve it as `version`; see `PublishPolicy`."""
        self._written += 1  # never a path twice: engines key what they cache by it
        path = self._directory / f"v{version:06d}-{self._written}"
        match self._engine.weight_format:
            case WeightFormat.MERGED:
                path = path.with_suffix(".safetensors")
            case WeightFormat.ADAPTER:
                pass
            case _:
                assert_never(self._engine.weight_format)
        await self._save(self._engine.weight_format, path)
        await self._engine.publish(version, path)
        replaced = self._paths.get(version)
        self._paths[version] = path
        if replaced is not None:
            _delete(replaced)
        for unused in set(self._paths) - self._engine.versions_in_use:
            _delete(self._paths.pop(unused))


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
