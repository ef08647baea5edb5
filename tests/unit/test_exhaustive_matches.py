"""Adding a member to an enum or a Literal must break the type check until every `match` over it has been thought of."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

OPEN = {"treeopo/problems/staged_arithmetic.py"}
"""Files that match plain strings, of which there is no closed list."""

FILES = [
    str(path.relative_to(ROOT))
    for room in ("treeopo", "cli/treeopo_cli", "storage/treeopo_storage")
    for path in sorted((ROOT / room).rglob("*.py"))
]


def is_member(pattern: ast.pattern) -> bool:
    """`Enum.MEMBER` or "literal", alone, as one of several, or under a name."""
    if isinstance(pattern, ast.MatchOr):
        return all(map(is_member, pattern.patterns))
    if isinstance(pattern, ast.MatchAs) and pattern.pattern is not None:
        return is_member(pattern.pattern)
    return isinstance(pattern, ast.MatchValue | ast.MatchSingleton)


def falls_through(source: str) -> list[int]:
    """Lines of matches over members that do not end in `assert_never`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Match)
        and is_member(node.cases[0].pattern)
        and "assert_never" not in ast.unparse(node.cases[-1])
    ]


@pytest.mark.parametrize("file", [file for file in FILES if file not in OPEN])
def test_every_match_over_members_ends_in_assert_never(file: str) -> None:
    assert falls_through((ROOT / file).read_text(encoding="utf-8")) == []


def test_a_match_that_falls_through_is_seen() -> None:
    closed = "match x:\n    case E.A | E.B as y:\n        f()\n    case _:\n        assert_never(x)\n"
    assert falls_through(closed) == []
    assert falls_through(closed.replace("assert_never(x)", "g()")) == [1]
    assert falls_through(closed.replace("E.A | E.B as y", "{'key': str()}").replace("assert_never(x)", "g()")) == []
