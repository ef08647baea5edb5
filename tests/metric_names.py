"""The names of metrics as docs/metrics.md lists them."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
_VARIES = {"K": r"\d+", "NAME": "(kl|critic)"}


def table() -> dict[str, str]:
    """Each name of the tables, and the file (from treeopo/) that is said to write it."""
    rows = re.findall(r"^\| (`[a-z]+/.*?) \|.*\| `(\S+\.py)` \|$", PAGE.read_text(), re.MULTILINE)
    return {name: file for names, file in rows for name in re.findall("`([^`]+)`", names)}


def is_documented(name: str) -> bool:
    return any(re.fullmatch(_pattern(row), name) for row in table())


def _pattern(row: str) -> str:
    return re.sub("[A-Z]+", lambda varies: _VARIES[varies[0]], row)
