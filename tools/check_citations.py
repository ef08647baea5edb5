"""Fail where the project cites what its readers do not have: a specification or numbered facts of our own, a paper by
number alone. Cite the paper by arXiv number, section and equation, or a page of docs/.
"""

import re
import sys
from pathlib import Path

PRIVATE = re.compile(r"\bSPEC\b|\bfacts? \d|\bsecond paper\b")
PLACES = ("treeopo", "cli", "storage", "docs", "tests", "benchmarks", "examples", "README.md", "CONTRIBUTING.md")
KINDS = (".py", ".md", ".toml", ".txt")


def private_citations(root: Path) -> list[str]:
    """`file:line: text` of each."""
    files = (
        path
        for place in PLACES
        for path in ([root / place] if (root / place).is_file() else sorted((root / place).rglob("*")))
        if path.suffix in KINDS
    )
    return [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PRIVATE.search(line)
    ]


if __name__ == "__main__":
    found = private_citations(Path(__file__).parent.parent)
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(f"{len(found)} private citations; cite the paper or a page of docs/" if found else 0)
