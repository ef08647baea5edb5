"""Final answers of MATH: the LaTeX of the last `\\boxed{}`, compared by spelling and then by math-verify.

What spelling settles takes microseconds. math-verify runs in a worker process that can be killed (`pool`), after
`MathGrader.prepare` has taken from it what could run text.
"""

import contextlib
import re
import signal
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

from treeopo.errors import GraderError
from treeopo.problems.answers import Boxed, claims, is_balanced, last_boxed, tail
from treeopo.problems.graders.base import GradingTimeout
from treeopo.problems.graders.closeness import are_close, are_one_number, ratio, told_apart
from treeopo.problems.latex import claimed_latex, is_hexadecimal, normal, spelling
from treeopo.problems.numbers import Exact, parse_number
from treeopo.records import Problem

MAX_ANSWER_CHARS = 512
"""Longer answers are wrong: no published gold has a third of this, and parsing LaTeX is slower than linear."""


class MathVerify(NamedTuple):
    """math-verify at work, on LaTeX: whether gold and answer are equal, and whether it can read a gold."""

    compare: Callable[[str, str], bool]
    reads: Callable[[str], bool]


_FORBIDDEN = {"os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen", "socket.connect"}
_SURELY_READ = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\\frac\{[0-9]+\}\{[1-9][0-9]*\}|[a-zA-Z])")
_INTEGER = re.compile(r"[-+]?[0-9]{1,64}")
_APART = re.compile(r"[-+0-9., ]*[0-9] +[0-9][-+0-9., ]*")  # 7 2, which math-verify adds up


class MathGrader:
    """The LaTeX of the last `\\boxed{}` or "answer is $...$", compared by math-verify."""

    prompt_ending = "Put the final answer in \\boxed{}."

    def __init__(self) -> None:
        self._verify: MathVerify | None = None

    def parse_gold(self, text: str, *, worked: bool) -> str:
        """What the last `\\boxed{}` holds (several of one list: all), or (not worked, and no box) the whole text."""
        boxed = last_boxed(text)
        gold = text if boxed is None and not worked else _one_answer(boxed) if boxed else ""
        if not gold.strip():
            raise ValueError("does not end in " + ("a closed \\boxed{} with an answer" if worked else "an answer"))
        return gold.strip()

    def quick_reads(self, gold: str) -> bool | None:
        """Whether math-verify can read a gold, where its text tells."""
        if not gold.strip() or len(gold) > MAX_ANSWER_CHARS or not is_balanced(gold):
            return False
        return True if _SURELY_READ.fullmatch(spelling(gold)) else None

    def reads(self, gold: str) -> bool:
        """Whether math-verify makes an object of a gold: what it does not, it compares as text.

        Raises:
            GraderError: this is no worker process.
        """
        known = self.quick_reads(gold)
        return self._prepared().reads(normal(gold)) if known is None else known

    def answer(self, text: str) -> str:
        return spelled_answer(text)

    def quick(self, problem: Problem, text: str) -> float | None:
        """The verdict where spelling gives one; None where it takes algebra."""
        answer = math_answer(text)
        right = False if answer is None else quick_verdict(problem.answer, answer)
        return None if right is None else float(right)

    def prepare(self, deadline_seconds: float) -> None:
        """Load math-verify with an alarm below the deadline, use it once, and raise the second fence.

        The alarm ends most slow answers without losing the process. It cannot end all (one long operation on integers
        is a single instruction), hence the pool's deadline.
        """
        _set_limits()
        self._verify = math_verify(alarm_seconds=max(1, int(0.4 * deadline_seconds)))  # once to read, once to compare
        self._verify.compare(r"\frac{1}{2}", "0.5 x")  # what parser and algebra load on first use
        _forbid_running_text()

    def grade(self, problem: Problem, text: str) -> float:
        """The verdict by algebra.

        Raises:
            GraderError: this is no worker process: `open_grader` starts them.
            GradingTimeout: math-verify's alarm went off.
        """
        answer = math_answer(text)
        if answer is None or len(answer) > MAX_ANSWER_CHARS:
            return 0.0
        return float(self._prepared().compare(normal(problem.answer), normal(answer)))

    def _prepared(self) -> "MathVerify":
        if self._verify is None:
            raise GraderError(
                "math-verify runs in processes of its own; grade through treeopo.problems.graders.open_grader"
            )
        return self._verify


def math_answer(text: str) -> str | None:
    """The LaTeX of the last `\\boxed{}` or "answer is $...$" of a solution, whichever stands later.

    A `\\boxed{` that is never closed is no answer, whatever stands before it; nor is an "answer is" with LaTeX or
    digits that cannot be read whole. Boxes of one list are one answer. "answer is" before words is prose, and "Answer:"
    counts where there is no box.
    """
    text = tail(text)
    boxed = last_boxed(text)
    for claim in claims(text, boxed.position if boxed else 0):
        if boxed and not claim.is_sentence:
            continue
        latex = claimed_latex(claim)
        if latex is not None:
            return latex or None
    return (_one_answer(boxed) or None) if boxed else None


def _one_answer(boxed: Boxed) -> str:
    """What boxes of one list hold, as one text; of those that hold one number in two spellings the last."""
    distinct: dict[Exact | str, str] = {}
    for content in boxed.contents:
        number = parse_number(content)
        distinct[spelling(content) if number is None else number] = content
    return ", ".join(distinct.values())


def quick_verdict(gold: str, answer: str) -> bool | None:
    """Whether the answer is right, where its spelling alone tells; None where it takes algebra."""
    if len(answer) > MAX_ANSWER_CHARS:
        return False
    gold, answer = spelling(gold), spelling(answer)
    if gold == answer:
        return True
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):
        return int(gold) == int(answer)
    return False if is_hexadecimal(answer) or _APART.fullmatch(answer) else None


def spelled_answer(text: str) -> str:
    """`math_answer` in one spelling of the LaTeX that differs only in looks; empty where there is none."""
    answer = math_answer(text)
    return "" if answer is None else spelling(answer[:MAX_ANSWER_CHARS])


def math_verify(alarm_seconds: int) -> MathVerify:
    """Compares gold and answer, both LaTeX, by math-verify as installed but for `parse_expr`; raises `GradingTimeout`.

    sympy's `parse_expr` is an `eval`. math-verify would read plain expressions with it (not extracted here), and the
    digits of a number in LaTeX do reach it through `sympy.Number`; so it is replaced by one that reads numbers only.
    """
    import sympy.parsing.sympy_parser
    import sympy.physics.units  # loaded late otherwise, and it parses names of its own

    sympy.parsing.sympy_parser.parse_expr = sympy.parsing.parse_expr = _read_digits  # before math-verify imports it
    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.errors import TimeoutException

    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def read(latex: str) -> list[Any]:
        return list(parse(f"\\boxed{{{latex}}}", config, parsing_timeout=alarm_seconds, raise_on_error=True))

    read_gold = lru_cache(maxsize=1024)(read)

    def equal(gold: Any, answer: Any) -> bool:
        try:
            return bool(verify(gold, answer, timeout_seconds=alarm_seconds, raise_on_error=True))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  sympy raises whatever it likes on LaTeX that makes no sense
            return False

    def told(gold: str, answer: str) -> bool:
        terms, others = ratio(gold), ratio(answer)
        if terms is not None and others is not None:
            return len(terms) == len(others) and all(map(told, terms, others))
        if told_apart(gold, answer) or are_one_number(gold, answer):
            return are_one_number(gold, answer)
        answers = read(answer)
        return any(
            equal(one, other) and are_close(one, other, gold, answer) for one in read_gold(gold) for other in answers
        )

    def settled(*latex: str, by: Callable[..., bool]) -> bool:
        try:
            return by(*latex)
        except TimeoutException:
            raise GradingTimeout from None
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  as above
            return False

    def is_read(gold: str) -> bool:
        return bool(ratio(gold)) or any(not isinstance(one, str) for one in read_gold(gold))

    return MathVerify(partial(settled, by=told), partial(settled, by=is_read))


def _read_digits(text: str, *_: Any, **__: Any) -> Any:
    """`sympy.parse_expr` of a number, as exact as that is; anything else is refused."""
    import sympy

    if re.fullmatch(r"[0-9]+", text):
        return sympy.Integer(int(text))
    if re.fullmatch(r"[0-9]*\.[0-9]*", text):
        return sympy.Float(text)
    raise ValueError("text is not evaluated here")


def _set_limits() -> None:
    """No file is written, and none is left when the process is killed."""
    import resource  # not where no worker runs: some systems have none

    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        with contextlib.suppress(OSError, ValueError):  # a lower limit of the machine's own stays
            resource.setrlimit(kind, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.dont_write_bytecode = True


def _forbid_running_text() -> None:
    """From here on nothing evaluates a string, starts a process or connects: a second fence, should the first give."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _FORBIDDEN or (event == "exec" and getattr(arguments[0], "co_filename", "") == "<string>"):
            raise RuntimeError(f"{event} is forbidden in a grading worker")

    sys.addaudithook(audit)
