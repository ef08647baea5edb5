"""The search actions of rStar (Qi et al., arXiv 2408.06195): which are open at a node, and the prompts of A3 to A5.

A1 step and A2 solution go on from the plain prompt. A3 subquestion, A4 reanswer and A5 rephrase ask under a prompt of
their own, made from a text file; what comes back is a step of plain text like any other.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, assert_never, get_args

from treeopo_storage import Action
from treeopo_storage.errors import StoreError
from treeopo_storage.text_files import read_text

from treeopo.errors import ConfigError
from treeopo.search.settings import SearchSettings
from treeopo.search.tree import ROOT_NODE, GrowingTree
from treeopo.seeds import derive_seed

TEMPLATES = Path(__file__).parent / "templates"
"""The prompts that ship, one file an action."""

PromptedAction = Literal[Action.SUBQUESTION, Action.REANSWER, Action.REPHRASE]
AskedAction = Literal[Action.STEP, Action.SUBQUESTION, Action.REANSWER, Action.REPHRASE]
"""How one step may be asked for; A2 SOLUTION asks for all that remain."""

PROMPTED: tuple[PromptedAction, ...] = get_args(PromptedAction)
_ANSWERS = (Action.SUBQUESTION, Action.REANSWER)
_PLACEHOLDER = re.compile(r"\{(question|steps)\}")
_CHOICES = 1  # the stream of seeds that choices are drawn from; requests have the one of the bare seed


class ActionPrompts:
    """The prompts of the actions that `settings` enable; `encode` makes tokens of a prompt's text.

    Raises:
        ConfigError: a template cannot be read, or lacks a placeholder.
    """

    def __init__(self, settings: SearchSettings, encode: Callable[[str], Sequence[int]]) -> None:
        folder = settings.templates or TEMPLATES
        self._encode = encode
        self._templates = {action: _read(folder, action) for action in PROMPTED if is_enabled(settings, action)}

    @property
    def texts(self) -> Mapping[str, str]:
        """The templates by the name of their action."""
        return {action.name.lower(): text for action, text in self._templates.items()}

    def prompt(self, action: PromptedAction, question: str, steps: str) -> list[int]:
        """Tokens that ask for `action` where the solution so far reads `steps`; nothing else of the problem is told."""
        told = {"question": question, "steps": steps}
        return list(self._encode(_PLACEHOLDER.sub(lambda found: told[found[1]], self._templates[action])))

    def longest(self, question: str) -> int:
        """Tokens of the longest of this question's prompts before the first step; 0 if no action has a prompt."""
        return max((len(self.prompt(action, question, "")) for action in self._templates), default=0)


class ActionChoice:
    """How the next step below a node is asked for: by the legal actions in turn, in an order made from the seed."""

    def __init__(self, settings: SearchSettings, seed: int) -> None:
        self._prompted = [action for action in PROMPTED if is_enabled(settings, action)]
        self._depth = settings.depth
        self._seed = seed
        self._choices = 0
        self._chosen: Counter[tuple[int, Action]] = Counter()

    def choose(self, tree: GrowingTree, node: int) -> AskedAction:
        """One of the legal actions that were chosen least often at `node`, each as likely as the other."""
        legal = self._legal(tree, node)
        if len(legal) == 1:
            return legal[0]
        fewest = min(self._chosen[node, action] for action in legal)
        open_actions = [action for action in legal if self._chosen[node, action] == fewest]
        action = open_actions[derive_seed(self._seed, _CHOICES, self._choices) % len(open_actions)]
        self._choices += 1
        self._chosen[node, action] += 1
        return action

    def _legal(self, tree: GrowingTree, node: int) -> list[AskedAction]:
        """The last step of a trace is all that remains, and so is asked for by continuation; so is the last try of a
        node that has no child, for a continuation always makes one.
        """
        is_last_try = tree.tries_P[node] + tree.claims_P[node] + 1 >= tree.branching
        if tree.depth_P[node] + 1 >= self._depth or (is_last_try and not tree.children_P[node]):
            return [Action.STEP]
        return [Action.STEP, *(action for action in self._prompted if _is_open(action, tree, node))]


def is_enabled(settings: SearchSettings, action: Action) -> bool:
    return action.name.lower() in settings.actions


def _is_open(action: PromptedAction, tree: GrowingTree, node: int) -> bool:
    """Whether `action` has something to work on below `node`."""
    match action:
        case Action.SUBQUESTION:
            return True
        case Action.REANSWER:
            return last_subquestion(tree, node) is not None
        case Action.REPHRASE:
            return node == ROOT_NODE
        case _:
            assert_never(action)


def last_subquestion(tree: GrowingTree, node: int) -> int | None:
    """The newest child of `node` that answers a sub-question (A3 or A4), beside which A4 puts another answer."""
    answers = (child for child in reversed(tree.children_P[node]) if tree.action_P[child] in _ANSWERS)
    return next(answers, None)


def _placeholders(action: PromptedAction) -> list[str]:
    match action:
        case Action.SUBQUESTION | Action.REANSWER:
            return ["question", "steps"]
        case Action.REPHRASE:
            return ["question"]
        case _:
            assert_never(action)


def _read(folder: Path, action: PromptedAction) -> str:
    path = folder / f"{action.name.lower()}.txt"
    try:
        text = read_text(path)
    except StoreError as error:
        raise ConfigError(f"search.templates: {error}") from None
    wanted = _placeholders(action)
    if sorted(_PLACEHOLDER.findall(text)) != wanted:
        names = " and ".join(f"{{{name}}}" for name in wanted)
        raise ConfigError(f"search.templates: {path} must name {names} once each, and no other placeholder")
    return text
