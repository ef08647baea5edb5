"""The tree while it grows: one list per attribute, indexed by node, parents before their children.

Three node states matter to the search:

    open       tried fewer than `branching` times, or some child is open
    terminal   the trace ended here (it carries a reward)
    exhausted  terminal, or fully tried with every child exhausted: never searched again
"""

from collections.abc import Hashable

import numpy as np
from treeopo_storage import NO_PARENT, Action, ProblemTree

from treeopo.ports import Tokenize
from treeopo.records import FloatArray, IntArray, Problem
from treeopo.search.uct import select_child

ROOT_NODE = 0


class GrowingTree:
    """A tree of P nodes; node 0 is the root, whose step is the prompt.

    visits_P and value_sum_P count traces through a node and their rewards; tries_P counts the steps asked for (or found
    on the way of a trace) below a node, including those that repeated a child. Of traces under way, claims_P counts
    the tries that they have begun at a node, virtual_P those that came through it.
    """

    def __init__(self, prompt_ids_T: IntArray, branching: int) -> None:
        self.branching = branching
        self.parent_P: list[int] = []
        self.depth_P: list[int] = []
        self.visits_P: list[int] = []
        self.value_sum_P: list[float] = []
        self.reward_P: list[float] = []  # NaN: not terminal
        self.action_P: list[Action] = []
        self.tries_P: list[int] = []
        self.claims_P: list[int] = []
        self.virtual_P: list[int] = []
        self.exhausted_P: list[bool] = []
        self.children_P: list[list[int]] = []
        self.token_ids_P: list[IntArray] = []
        self.logprobs_P: list[FloatArray] = []
        self._child_of: dict[tuple[int, Hashable], int] = {}
        self._add(NO_PARENT, 0, prompt_ids_T, np.full(len(prompt_ids_T), np.nan, np.float32), Action.ROOT)

    def select(self, node: int, exploration: float) -> int:
        """Descend by UCT from a node that has room to one that may be tried again.

        Virtual loss: a trace under way counts as a visit that returned nothing, so that others turn elsewhere.
        """
        while not self._has_try(node):
            live = [child for child in self.children_P[node] if self.has_room(child)]
            values, visits = [self.value_sum_P[c] for c in live], [self.visits_P[c] + self.virtual_P[c] for c in live]
            parent_visits = self.visits_P[node] + self.virtual_P[node]
            node = live[select_child(values, visits, parent_visits, exploration)]
        return node

    def has_room(self, node: int) -> bool:
        """Whether a try is left at `node` or below that no trace has claimed."""
        if self.exhausted_P[node]:
            return False
        if self._has_try(node):
            return True
        return any(self.has_room(child) for child in self.children_P[node])

    def add_virtual_loss(self, node: int, traces: int) -> None:
        """Add so many traces under way (or take them back) along the path from the root to `node`."""
        while node != NO_PARENT:
            self.virtual_P[node] += traces
            node = self.parent_P[node]

    def _has_try(self, node: int) -> bool:
        return self.tries_P[node] + self.claims_P[node] < self.branching

    def grow(
        self, node: int, token_ids_T: IntArray, logprobs_T: FloatArray, action: Action, key: Hashable
    ) -> tuple[int, bool]:
        """Spend a try of `node` on a step; the child it leads to and whether it is new (same key, same child)."""
        self.tries_P[node] += 1
        known = self._child_of.get((node, key))
        if known is not None:
            self._settle(node)
            return known, False
        child = self._child_of[node, key] = self._add(node, self.depth_P[node] + 1, token_ids_T, logprobs_T, action)
        self.children_P[node].append(child)
        return child, True

    def spend(self, node: int) -> None:
        """Spend a try of `node` that brought no step."""
        self.tries_P[node] += 1
        self._settle(node)

    def end(self, node: int, reward: float) -> None:
        """Make a node terminal: its trace is finished, or was cut off."""
        self.reward_P[node] = reward
        self.exhausted_P[node] = True
        self._settle(self.parent_P[node])

    def is_terminal(self, node: int) -> bool:
        return not np.isnan(self.reward_P[node])

    def back_propagate(self, node: int) -> None:
        """Count one more trace that ended in terminal node `node`, all the way up to the root."""
        reward = self.reward_P[node]
        while node != NO_PARENT:
            self.visits_P[node] += 1
            self.value_sum_P[node] += reward
            node = self.parent_P[node]

    def prefix_ids(self, node: int) -> list[int]:
        """Prompt and steps down to `node`, as one list of token ids."""
        steps = []
        while node != NO_PARENT:
            steps.append(self.token_ids_P[node])
            node = self.parent_P[node]
        ids: list[int] = np.concatenate(steps[::-1]).tolist()
        return ids

    def freeze(self, problem: Problem, tokenize: Tokenize) -> ProblemTree:
        """The finished tree as a struct of arrays, steps concatenated in node order."""
        lengths_P = [len(ids) for ids in self.token_ids_P]
        return ProblemTree(
            id=problem.id,
            question=problem.question,
            answer=problem.answer,
            parent=np.array(self.parent_P, np.int32),
            depth=np.array(self.depth_P, np.int32),
            visits=np.array(self.visits_P, np.int32),
            value_sum=np.array(self.value_sum_P, np.float64),
            terminal=~np.isnan(self.reward_P),
            reward=np.array(self.reward_P, np.float32),
            action=np.array(self.action_P, np.int8),
            token_ids=np.concatenate(self.token_ids_P),
            token_offsets=np.concatenate([[0], np.cumsum(lengths_P)]).astype(np.int64),
            teacher_logprobs=np.concatenate(self.logprobs_P),
            texts=self._texts(tokenize),
        )

    def _texts(self, tokenize: Tokenize) -> tuple[str, ...]:
        """Of every step, as it reads in its solution: a text of its own may lose the space that it begins with."""
        texts, whole_P = list[str](), list[str]()
        for node, ids in enumerate(self.token_ids_P):
            before = "" if node == ROOT_NODE else whole_P[self.parent_P[node]]
            whole_P.append(decode_text(self.prefix_ids(node), tokenize))
            # A character whose bytes two steps share reads otherwise in the whole.
            goes_on = whole_P[node].startswith(before)
            texts.append(whole_P[node].removeprefix(before) if goes_on else decode_text(ids.tolist(), tokenize))
        return tuple(texts)

    def _add(self, parent: int, depth: int, token_ids_T: IntArray, logprobs_T: FloatArray, action: Action) -> int:
        self.parent_P.append(parent)
        self.depth_P.append(depth)
        self.visits_P.append(0)
        self.value_sum_P.append(0.0)
        self.reward_P.append(np.nan)
        self.action_P.append(action)
        self.tries_P.append(0)
        self.claims_P.append(0)
        self.virtual_P.append(0)
        self.exhausted_P.append(False)
        self.children_P.append([])
        self.token_ids_P.append(token_ids_T)
        self.logprobs_P.append(logprobs_T)
        return len(self.parent_P) - 1

    def _settle(self, node: int) -> None:
        """Mark `node` exhausted if nothing is left below it, and then its ancestors likewise."""
        while node != NO_PARENT and self.tries_P[node] >= self.branching:
            if not all(self.exhausted_P[child] for child in self.children_P[node]):
                return
            self.exhausted_P[node] = True
            node = self.parent_P[node]


def decode_text(token_ids_T: list[int], tokenize: Tokenize) -> str:
    """Text of the tokens, without the token at which the model stopped where they end in one."""
    return tokenize.decode(without_end(token_ids_T, tokenize))


def without_end(token_ids_T: list[int], tokenize: Tokenize) -> list[int]:
    """Tokens without the one at which the model stopped, where they end in one."""
    return token_ids_T[:-1] if token_ids_T and token_ids_T[-1] in tokenize.end_token_ids else token_ids_T
