"""What a search may spend and how it explores."""

from dataclasses import dataclass
from math import inf, pow
from typing import Literal, get_args

from treeopo.errors import require

Schedule = Literal["constant", "linear", "exponential"]
Merge = Literal["tokens", "text"]
Reward = Literal["gold", "vote", "both"]

FINAL_SHARE = 0.1
"""A decaying exploration constant ends at this share of itself, as in rStar (arXiv 2408.06195, its released code)."""


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Settings of one problem's search (SPEC §2); the defaults are the paper's where it states them.

    rollouts: traces searched per problem. depth: steps of the longest trace; the last step takes all that remains.
    branching: tries, and so children at most, of one node. exploration: UCT's c, 2.0 and constant as in rStar, whose
    search the paper uses. max_step_tokens: one step; max_solution_tokens: all steps of a trace together, so a prompt
    plus this must fit the engine. A trace that runs out of either ends there with reward 0. separator: ends a step.
    answer_mark: ends the trace with the step that holds it (a base model goes on to invent the next question); empty
    recognises no answer, so that traces end at end of text alone. merge: which steps below one node are the same child,
    those of equal tokens, or of equal text but for case, spacing and punctuation; the tokens and log-probabilities of
    the first stay. reward: what a trace earns: gold, its grade; vote, the share of traces that agree with its answer,
    the gold answer unseen, and terminal rewards mark the winning answer; both, values by vote, but terminal rewards are
    grades. leaves: traces of one problem searched at once, each a loss until it is done; 1 is textbook UCT.
    """

    rollouts: int = 16
    depth: int = 5
    branching: int = 5
    exploration: float = 2.0
    exploration_schedule: Schedule = "constant"
    max_step_tokens: int = 256
    max_solution_tokens: int = 512
    temperature: float = 1.0
    separator: str = "\n\n"
    answer_mark: str = "####"
    merge: Merge = "tokens"
    reward: Reward = "gold"
    leaves: int = 1

    def __post_init__(self) -> None:
        for name in ("rollouts", "depth", "branching", "max_step_tokens", "max_solution_tokens", "leaves"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(0 <= self.exploration < inf, f"exploration is {self.exploration}; it must be 0 or a positive number")
        for name, choices in (("exploration_schedule", Schedule), ("merge", Merge), ("reward", Reward)):
            known = get_args(choices)
            require(getattr(self, name) in known, f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}")
        require(
            0 < self.temperature < inf,
            f"temperature is {self.temperature}; it must be positive, or every try would be the same",
        )
        require(self.separator != "", "separator is empty; give the text that ends a reasoning step")

    def exploration_at(self, rollout: int) -> float:
        """UCT's c for a rollout counted from 0: constant, or decaying towards `FINAL_SHARE` of itself."""
        done = rollout / self.rollouts
        if self.exploration_schedule == "linear":
            return self.exploration * (1 - (1 - FINAL_SHARE) * done)
        if self.exploration_schedule == "exponential":
            return self.exploration * pow(FINAL_SHARE, done)
        return self.exploration
