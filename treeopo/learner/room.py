"""How much memory the learner may still take, and who says so: the card, the machine, a cgroup, ulimit, the settings.

A process beyond what the machine or its cgroup has is killed and nothing can be done about it, so these are asked
before memory is taken. What an engine, a teacher or a neighbour holds at that time is theirs.
"""

import ctypes
import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

GIB = 2**30
_MMAP_THRESHOLD = -3  # mallopt's M_MMAP_THRESHOLD (malloc.h)
_BLOCK = 2**18


class Room(NamedTuple):
    """Bytes that this process may still take, and what it is that leaves no more."""

    size: float
    bound: str


def room(device: torch.device, limit_gib: float | None, root: Path = Path("/")) -> Room:
    """The least of what everybody leaves. limit_gib: `learner.memory_gib`. root: of /proc and /sys."""
    return min(_rooms(device, limit_gib, root), default=Room(float("inf"), "nothing known"))


def held(device: torch.device) -> int:
    """Bytes that this process holds: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _kib(Path("/proc/self/status"), "VmRSS") or 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch says so by a class of its own on GPUs, and by a text on CPUs."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "bad_alloc" in str(error))


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def return_freed_blocks() -> None:
    """Have glibc give freed blocks of 256 KiB or more back to the system at once.

    Left to itself it keeps them for later, in pieces of which few fit again: three times the memory of what was alive
    has been seen in a step (benchmarks/memory.py freed). The price is that fresh pages are cleared by the system.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_MMAP_THRESHOLD, _BLOCK)


def _rooms(device: torch.device, limit_gib: float | None, root: Path) -> Iterator[Room]:
    if limit_gib is not None:
        yield Room(limit_gib * GIB - held(device), f"learner.memory_gib {limit_gib:g}")
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        yield Room(torch.cuda.mem_get_info(device)[0] + cached, "the GPU's memory")
        return
    learners = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of a torchrun, on this machine
    if (available := _kib(root / "proc/meminfo", "MemAvailable")) is not None:
        yield Room(available / learners, "the machine's memory")
    for left in _left_by_cgroups(root):
        yield Room(left / learners, "the memory limit of the cgroup (container)")
    for kind, name, used in (
        (resource.RLIMIT_AS, "ulimit -v", "VmSize"),
        (resource.RLIMIT_DATA, "ulimit -d", "VmData"),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            yield Room(limit - (_kib(root / "proc/self/status", used) or 0), name)


def _kib(file: Path, name: str) -> int | None:
    """The bytes of a line such as `MemAvailable:  1234 kB`; None where there is none."""
    try:
        text = file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    _, found, rest = text.partition(f"{name}:")
    return int(rest.split()[0]) * 1024 if found else None


def _left_by_cgroups(root: Path) -> Iterator[float]:
    """What each limit on the way up from this process's cgroup leaves; of version 2 and 1 (cgroups(7)).

    Pages of files that were not used lately do not count: they are given up before a process is.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts: tuple[str, ...] = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
            files = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounts = ("sys/fs/cgroup/memory",)
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for mount in mounts:
            # In a container the mount may begin at the container's own cgroup, whatever the path says.
            below = Path(path.strip("/"))
            for level in dict.fromkeys([root / mount / below, *(root / mount / each for each in below.parents)]):
                yield from _left(level, *files)


def _left(level: Path, limit_file: str, usage_file: str, inactive: str) -> Iterator[float]:
    try:
        limit, usage = (level / limit_file).read_text().strip(), int((level / usage_file).read_text())
        stat = dict(line.split() for line in (level / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    if limit.isdecimal():  # version 2 writes max for none, and version 1 a number beyond all memories
        yield int(limit) - usage + int(stat.get(inactive, 0))
