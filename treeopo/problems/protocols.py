"""How another project asks GSM8K's questions, so that its figures can be reproduced: `treeopo eval --protocol`.

Those of EleutherAI's lm-evaluation-harness, with the prompts, the worked examples and the ends that its tasks have:

    a question is a text without a blank line, an example goes on after a space, a blank line stands between two
    an example is written as the data set has it, calculator annotations and single line feeds included
    gsm8k draws other examples for each question, gsm8k_cot always has the same eight (of Wei et al., 2022)
    a completion that ran out of tokens is graded like any other
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from treeopo.errors import ProblemError, require
from treeopo.ports import Notify
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Encode, Prompter, PromptSettings, Wording
from treeopo.problems.spec import load_problems
from treeopo.records import Problem

ProtocolName = Literal["lm-eval-gsm8k", "lm-eval-gsm8k-cot", "lm-eval-gsm8k-cot-zeroshot"]

_SEED = 1234
"""Of the harness' examples (`fewshot_random_seed`)."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """template: a question as it is asked. shots, examples: the worked examples, where nothing else is asked for.
    draws: each question has others. A completion ends at any of `stop`, or after `max_new_tokens`.
    """

    template: str
    stop: tuple[str, ...]
    grader: str
    shots: int = 0
    examples: str | None = None
    draws: bool = False
    max_new_tokens: int = 256

    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of an evaluation, nested, where `given` has no others.

        Raises:
            ConfigError: it has no examples of its own, and none are given.
        """
        prompt = given.get("prompt") or {}
        shots = prompt.get("shots", self.shots) if isinstance(prompt, Mapping) else 0
        require(
            not shots or self.examples is not None or prompt.get("examples") is not None,
            f"protocol {given.get('protocol')}: give its {shots} worked examples as prompt.examples (--examples FILE; "
            "docs/evaluation.md tells where they are)",
        )
        found: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "grade_cut": True,
            "grading": {"grader": self.grader},
        }
        if shots:
            found["prompt"] = {"shots": shots, "examples": self.examples}
        return found


_Q_ENDS = ("Q:", "</s>", "<|im_end|>")

PROTOCOLS: Final[Mapping[str, Protocol]] = MappingProxyType(
    {
        "lm-eval-gsm8k": Protocol(
            "Question: {question}\nAnswer:",
            ("Question:", "</s>", "<|im_end|>"),
            "gsm8k-strict-match",
            shots=5,
            examples="gsm8k:train",
            draws=True,
        ),
        "lm-eval-gsm8k-cot": Protocol("Q: {question}\nA:", _Q_ENDS, "gsm8k-cot-strict-match", shots=8),
        "lm-eval-gsm8k-cot-zeroshot": Protocol(
            "Q: {question}\nA: Let's think step by step.", _Q_ENDS, "gsm8k-cot-strict-match"
        ),
    }
)
"""By the name of `--protocol`."""


def protocol_prompts(
    protocol: Protocol, tokenizer: Encode, settings: PromptSettings, problem_set: ProblemSet, notify: Notify
) -> list[list[int]]:
    """Tokens that ask each problem, in the set's order, by which the examples are drawn; `notify` as in `Prompter`.

    Raises:
        ProblemError: the examples cannot be read, or fewer than `settings.shots` have a solution.
        ModelError: as `Prompter`.
    """
    pool, shots = _pool(protocol, settings), settings.shots
    wording = Wording(protocol.template, pool[:shots], protocol.stop, lead=" ")
    prompter = Prompter(tokenizer, settings, problem_set, notify, wording)
    if not protocol.draws:
        return [prompter(problem) for problem in problem_set]
    drawing = random.Random(_SEED)
    prompts = []
    for problem in problem_set:
        examples = drawing.sample(pool, shots)
        if any(example.question == problem.question for example in examples):
            examples = drawing.sample([one for one in pool if one.question != problem.question], shots)
        prompts.append(prompter(problem, examples))
    return prompts


def _pool(protocol: Protocol, settings: PromptSettings) -> list[Problem]:
    if settings.examples is None:
        return []
    limit = None if protocol.draws else settings.shots
    solved = [one for one in load_problems(settings.examples, limit, verbatim=True) if one.solution]
    if len(solved) <= settings.shots - (not protocol.draws):
        raise ProblemError(
            f"{settings.examples}: {len(solved)} of its problems have a worked solution, too few to take the "
            f"{settings.shots} shots asked for from"
        )
    return solved
