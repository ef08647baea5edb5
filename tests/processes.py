"""What runs below a process, as the kernel sees it."""

from pathlib import Path


def children(parent: int) -> list[int]:
    """Process ids of the direct children of `parent`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def engines(parent: int) -> list[int]:
    """Those of them that are vLLM engines, by the name vLLM gives its processes."""
    return [child for child in children(parent) if "EngineCore" in command(child)]


def command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()
