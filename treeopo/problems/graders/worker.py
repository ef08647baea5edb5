"""The process in which a grader runs. Started by `pool` as a script.

    stdin    a line of JSON for each answer: {"ask": "grade", "problem": [id, question, answer, solution], "text": ...}
             or {"ask": "answer", "text": ...} or {"ask": "reads", "gold": ...}
    stdout   {"ready": true}, or {"error": why the grader cannot be used}; then a line for each answer: {"value": reward
             or answer}, {"error": what went wrong} or {"timeout": true}

It ends with its parent, at the end of stdin, or when it is out of memory. It may be killed at any time. What a grader
prints goes nowhere, so that it is never read as a verdict.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treeopo.problems.graders.base import Grader

MAX_ANSWER_CHARS = 4096
"""A longer canonical answer is an error: answers are counted, and kept by the thousand."""

_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = 3


def main(grader: str, parent: int, memory_mib: int, deadline_seconds: float, path: list[str]) -> None:
    """Answer requests about `grader` until stdin ends; `path` is where the parent finds modules."""
    _die_with(parent)
    requests, replies = _private_streams()
    _limit(memory_mib)
    sys.path += [entry for entry in path if entry not in sys.path]  # last: none stands in for a library's module
    made = _made(grader, deadline_seconds, replies)
    if made is None:
        return
    _say(replies, {"ready": True})
    for line in requests:
        try:
            reply = _reply(made, json.loads(line))
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)  # caches may hold what filled it: the next answer deserves a new process
        _say(replies, reply)


def _private_streams() -> tuple[IO[str], IO[str]]:
    """stdin and stdout for the protocol alone: neither the grader nor a process that it starts can read or write it."""
    requests, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    return requests, replies


def _die_with(parent: int) -> None:
    """Also while computing, when the end of stdin goes unread."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere the deadline's owner or stdin ends it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _limit(memory_mib: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # a lower limit of the machine's own stays
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy sets aside address space for each of its threads


def _made(name: str, deadline_seconds: float, replies: IO[str]) -> "Grader | None":
    """The grader, prepared; None where the parent was told why it cannot be had."""
    try:
        from treeopo.problems.graders.base import load_grader

        grader = load_grader(name)
        prepare = getattr(grader, "prepare", None)
        if prepare is not None:
            prepare(deadline_seconds)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    except Exception as error:  # noqa: BLE001  whatever a user's module raises
        _say(replies, {"error": " ".join(f"{type(error).__name__}: {error}".split())[:2000]})
    else:
        return grader
    return None


def _reply(grader: "Grader", request: dict[str, Any]) -> dict[str, Any]:
    from treeopo.errors import described
    from treeopo.problems.graders.base import GradingTimeout, as_reward
    from treeopo.records import Problem

    try:
        if request["ask"] == "answer":
            return {"value": _canonical(grader.answer(request["text"]))}
        if request["ask"] == "reads":
            return {"value": float(bool(grader.reads(request["gold"])))}  # type: ignore[attr-defined]  # it was asked
        returned = grader.grade(Problem(*request["problem"]), request["text"])
    except GradingTimeout:
        return {"timeout": True}
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a grader raises
        return {"error": f"it raised {described(error)}"}
    try:
        return {"value": as_reward(returned)}
    except Exception as error:  # noqa: BLE001  a strange object may raise when it is looked at
        return {"error": str(error)}


def _canonical(answer: Any) -> str:
    if not isinstance(answer, str):
        raise TypeError(f"answer returned {type(answer).__name__}, not a text")
    if len(answer) > MAX_ANSWER_CHARS:
        raise ValueError(f"answer has {len(answer):,} characters; {MAX_ANSWER_CHARS:,} at most")
    return answer.encode("utf-8", "replace").decode()  # a lone surrogate cannot be written to any file


def _say(replies: IO[str], reply: dict[str, Any]) -> None:
    print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[3]))  # treeopo, where it is used without being installed
    main(**json.loads(sys.argv[1]))
