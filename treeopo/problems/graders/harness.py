"""GSM8K's verdicts as EleutherAI's lm-evaluation-harness gives them, for figures that are compared with published ones.

Its tasks gsm8k and gsm8k_cot (both of version 3) look for a pattern, take the first or the last match, and compare it
with the gold as text: commas, dollar signs, a full stop at the end and all before `#### ` are left out of both. So
`#### 72.00` is wrong for 72, `1/2` is right for 1 (of which it reads the 1), and the last number anywhere may be right.

    gsm8k-strict-match       of gsm8k: the first `#### ` and a number
    gsm8k-cot-strict-match   of gsm8k_cot: the first "The answer is " and a number, with any character behind it
    gsm8k-flexible-extract   of both: the last number
"""

import re

from treeopo.problems.graders.number import NumberGrader
from treeopo.records import Problem

_IGNORED = tuple(map(re.compile, (",", r"\$", r"(?s).*#### ", r"\.$")))


class HarnessGrader(NumberGrader):
    """The first or the last match of a pattern, compared as text."""

    def __init__(self, pattern: str, prompt_ending: str, *, last: bool = False) -> None:
        self._pattern = re.compile(pattern)
        self._last = last
        self.prompt_ending = prompt_ending

    def answer(self, text: str) -> str:
        found = [next(filter(None, match.groups()), match[0]) for match in self._pattern.finditer(text)]
        return _compared(found[-1 if self._last else 0].strip()) if found else ""

    def grade(self, problem: Problem, text: str) -> float:
        answer = self.answer(text)
        return float(answer != "" and answer == _compared(problem.answer))

    def quick(self, problem: Problem, text: str) -> float | None:
        return self.grade(problem, text)


def _compared(answer: str) -> str:
    for ignored in _IGNORED:
        answer = ignored.sub("", answer)
    return answer


GSM8K_STRICT_MATCH = HarnessGrader(r"#### (\-?[0-9\.\,]+)", NumberGrader.prompt_ending)
GSM8K_COT_STRICT_MATCH = HarnessGrader(r"The answer is (\-?[0-9\.\,]+).", 'End with "The answer is" and the answer.')
GSM8K_FLEXIBLE_EXTRACT = HarnessGrader(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", NumberGrader.prompt_ending, last=True)
