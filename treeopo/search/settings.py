"""What a search may spend and how it explores."""

from dataclasses import dataclass
from math import inf, pow
from pathlib import Path
from typing import Literal, get_args

from treeopo.errors import require

Schedule = Literal["constant", "linear", "exponential"]
Merge = Literal["tokens", "text"]
Reward = Literal["gold", "vote", "both"]
ActionName = Literal["step", "solution", "subquestion", "reanswer", "rephrase"]

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
    grades. leaves: traces of one problem searched at once, each a loss until it is done; 1 is textbook UCT. actions:
    how steps are asked for, rStar's A1 to A5: step, by continuation, always; solution, the rest at once below each new
    node (without it the trace goes on step by step); subquestion, reanswer and rephrase, under prompts of their own.
    templates: a directory with those prompts, subquestion.txt and so on, instead of the ones that ship.
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
    actions: tuple[ActionName, ...] = ("step", "solution")
    templates: Path | None = None

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
        self._check_actions()

    def exploration_at(self, rollout: int) -> float:
        """UCT's c for a rollout counted from 0: constant, or decaying towards `FINAL_SHARE` of itself."""
        done = rollout / self.rollouts
        if self.exploration_schedule == "linear":
            return self.exploration * (1 - (1 - FINAL_SHARE) * done)
        if self.exploration_schedule == "exponential":
            return self.exploration * pow(FINAL_SHARE, done)
        return self.exploration

    def _check_actions(self) -> None:
        known = get_args(ActionName)
        unknown = [name for name in self.actions if name not in known]
        require(not unknown, f"actions has {', '.join(map(repr, unknown))}; use names of {', '.join(known)}")
        require(len(set(self.actions)) == len(self.actions), "actions names one twice; name each once")
        require("step" in self.actions, "actions lacks step, which is open everywhere; add it")
        require(
            "reanswer" not in self.actions or "subquestion" in self.actions,
            "actions has reanswer, but without subquestion there is nothing to answer again; add it",
        )
        require(
            self.templates is None or self.asks_otherwise,
            "templates is given, but no action has a prompt of its own; add one to actions, or leave it out",
        )

    @property
    def asks_otherwise(self) -> bool:
        """Whether some step is asked for under another prompt than the plain one."""
        return not set(self.actions) <= {"step", "solution"}
