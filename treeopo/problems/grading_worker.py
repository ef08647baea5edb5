"""The process in which math-verify runs. Started by `grading_pool` as a script; imports nothing of treeopo.

    stdin    one line of JSON an answer: {"gold": latex, "answer": latex}
    stdout   "ready", then one line an answer: "right", "wrong" or "timeout"

It ends with its parent, at the end of stdin, or when it is out of memory. It may be killed at any time.
"""

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

Verdict = str

_FORBIDDEN = {"os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen", "socket.connect"}
_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = 3


def main(parent: int, memory_mib: int, inner_seconds: int) -> None:
    _die_with(parent)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # a library that prints must not be read as a verdict
    os.dup2(nowhere, 2)
    _limit(memory_mib)
    verdict = _math_verify(inner_seconds)
    verdict(r"\frac{1}{2}", "0.5 x")  # what parser and algebra load on first use
    _forbid_running_text()
    print("ready", file=replies, flush=True)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            reply = verdict(request["gold"], request["answer"])
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)  # caches may hold what filled it: the next answer deserves a new process
        print(reply, file=replies, flush=True)


def _die_with(parent: int) -> None:
    """Also while computing, when the end of stdin goes unread."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere the deadline's owner or stdin ends it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _limit(memory_mib: int) -> None:
    limits = {resource.RLIMIT_AS: memory_mib << 20, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for kind, value in limits.items():
        with contextlib.suppress(OSError, ValueError):  # a lower limit of the machine's own stays
            resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.dont_write_bytecode = True


def _math_verify(inner_seconds: int) -> Callable[[str, str], Verdict]:
    """Compares LaTeX by math-verify, as installed but for `parse_expr`.

    sympy's `parse_expr` is an `eval`. math-verify would read plain expressions with it (not extracted here), and the
    digits of a number in LaTeX do reach it through `sympy.Number`; so it is replaced by one that reads numbers only.

    math-verify's own alarm stays on, below the pool's deadline: it ends most slow answers without losing the process.
    It cannot end all (one long operation on integers is a single instruction), hence the pool's.
    """
    import sympy.parsing.sympy_parser
    import sympy.physics.units  # loaded late otherwise, and it parses names of its own

    sympy.parsing.sympy_parser.parse_expr = sympy.parsing.parse_expr = _parse_number  # before math-verify imports it
    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.errors import TimeoutException

    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def read(latex: str) -> list[Any]:
        return list(parse(f"\\boxed{{{latex}}}", config, parsing_timeout=inner_seconds, raise_on_error=True))

    read_gold = lru_cache(maxsize=1024)(read)

    def equal(gold: Any, answer: Any) -> bool:
        try:
            return bool(verify(gold, answer, timeout_seconds=inner_seconds, raise_on_error=True))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  sympy raises whatever it likes on LaTeX that makes no sense
            return False

    def verdict(gold: str, answer: str) -> Verdict:
        try:
            answers = read(answer)
            return "right" if any(equal(one, other) for one in read_gold(gold) for other in answers) else "wrong"
        except TimeoutException:
            return "timeout"
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  as above
            return "wrong"

    return verdict


def _parse_number(text: str, *_: Any, **__: Any) -> Any:
    """`sympy.parse_expr` of a number, as exact as that is; anything else is refused."""
    import sympy

    if re.fullmatch(r"[0-9]+", text):
        return sympy.Integer(int(text))
    if re.fullmatch(r"[0-9]*\.[0-9]*", text):
        return sympy.Float(text)
    raise ValueError("text is not evaluated here")


def _forbid_running_text() -> None:
    """From here on nothing evaluates a string, starts a process or connects: a second fence, should the first give."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _FORBIDDEN or (event == "exec" and getattr(arguments[0], "co_filename", "") == "<string>"):
            raise RuntimeError(f"{event} is forbidden in a grading worker")

    sys.addaudithook(audit)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
