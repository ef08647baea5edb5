"""Settings of a search: how much it may spend, and how it explores."""

from dataclasses import dataclass
from math import inf, pow
from pathlib import Path
from typing import Literal, assert_never, get_args

from treeopo.errors import require
from treeopo.records import LOWEST_TEMPERATURE

Schedule = Literal["constant", "linear", "exponential"]
Merge = Literal["tokens", "text"]
Reward = Literal["gold", "vote", "both"]
ActionName = Literal["step", "solution", "subquestion", "reanswer", "rephrase"]

FINAL_SHARE = 0.1
"""A decaying exploration constant ends at this share of itself, as in rStar (arXiv 2408.06195, its released code)."""


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """The search of one problem (Tree-OPO §4.1, App. D); the defaults are the paper's where it states them."""

    rollouts: int = 16
    """Traces searched per problem."""

    depth: int = 5
    """Steps of the longest trace; the last step takes all that remains."""

    branching: int = 5
    """Tries at one node, and so its children at most."""

    exploration: float = 2.0
    """UCT's c; 2.0 and constant as in rStar (arXiv 2408.06195), whose search the paper uses."""

    exploration_schedule: Schedule = "constant"
    """How c falls over the rollouts of a problem: not at all, or to a tenth."""

    max_step_tokens: int = 256
    """Tokens of one step at most."""

    max_solution_tokens: int = 512
    """Tokens of all steps of a trace; a trace that runs out of them ends with reward 0. The prompt comes on top, and
    the engine must hold both."""

    temperature: float = 1.0
    """The teacher's; at any other than 1 the store keeps no teacher log-probabilities of the steps."""

    separator: str = "\n\n"
    """The text that ends a step."""

    answer_mark: str = "####"
    """The step that holds it ends the trace, since a base model goes on to invent the next question; empty: traces end
    at end of text alone."""

    merge: Merge = "tokens"
    """Which steps below one node are the same child: those of equal tokens, or of equal text but for case, spacing and
    punctuation; tokens and log-probabilities of the first are kept."""

    reward: Reward = "gold"
    """What a trace earns. gold: its grade. vote: the share of traces that agree with its answer, the gold answer
    unseen; the winning answer's terminal nodes get reward 1. both: values by vote, terminal rewards by grade."""

    leaves: int = 1
    """Traces of one problem searched at once, each counting as a loss until it is done (virtual loss); 1: plain UCT."""

    actions: tuple[ActionName, ...] = ("step", "solution")
    """How steps are asked for, rStar's A1 to A5. step: by continuation, always. solution: all that remains at once
    below each new node. subquestion, reanswer, rephrase: under prompts of their own (docs/search.md)."""

    templates: Path | None = None
    """A directory with the prompts of the last three, subquestion.txt and so on; none: those that ship."""

    def __post_init__(self) -> None:
        for name in ("rollouts", "depth", "branching", "max_step_tokens", "max_solution_tokens", "leaves"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(0 <= self.exploration < inf, f"exploration is {self.exploration}; it must be 0 or a positive number")
        for name, choices in (("exploration_schedule", Schedule), ("merge", Merge), ("reward", Reward)):
            known = get_args(choices)
            require(getattr(self, name) in known, f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}")
        require(
            LOWEST_TEMPERATURE <= self.temperature < inf,
            f"temperature is {self.temperature}; at least {LOWEST_TEMPERATURE}, vLLM's lowest, is wanted",
        )
        require(self.separator != "", "separator is empty; give the text that ends a reasoning step")
        self._check_actions()

    def exploration_at(self, rollout: int) -> float:
        """UCT's c for a rollout counted from 0: constant, or decaying towards `FINAL_SHARE` of itself."""
        done = rollout / self.rollouts
        match self.exploration_schedule:
            case "constant":
                return self.exploration
            case "linear":
                return self.exploration * (1 - (1 - FINAL_SHARE) * done)
            case "exponential":
                return self.exploration * pow(FINAL_SHARE, done)
            case _ as unknown:
                assert_never(unknown)

    @property
    def votes(self) -> bool:
        """Whether values are shares of votes; if not, they are mean grades."""
        match self.reward:
            case "gold":
                return False
            case "vote" | "both":
                return True
            case _ as unknown:
                assert_never(unknown)

    @property
    def grades(self) -> bool:
        """Whether terminal rewards are grades; if not, they say which answer won the vote."""
        match self.reward:
            case "gold" | "both":
                return True
            case "vote":
                return False
            case _ as unknown:
                assert_never(unknown)

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
            self.templates is None or self.uses_action_prompts,
            "templates is given, but no action has a prompt of its own; add one to actions, or leave it out",
        )

    @property
    def uses_action_prompts(self) -> bool:
        """Whether some step is asked for under another prompt than the plain one."""
        return not set(self.actions) <= {"step", "solution"}
