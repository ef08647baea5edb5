"""Trees from traces: finished solutions of a problem, laid over one another where their steps agree."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from treeopo_storage.errors import TreeDataError
from treeopo_storage.joint import TreeTokenizer, encode_tree
from treeopo_storage.schema import NO_PARENT, Action, ProblemTree


@dataclass(frozen=True, slots=True)
class Trace:
    """One solution of a problem: its steps in order and its reward, None where it is not known yet."""

    id: str
    question: str
    answer: str
    prompt: str
    steps: tuple[str, ...]
    reward: float | None


class TreeBuilder:
    """Collects the traces of one problem; the first one names its question, answer and prompt."""

    def __init__(self, trace: Trace, separator: str, tokenize: TreeTokenizer, end_of_text: Sequence[int]) -> None:
        self._first, self._separator, self._tokenize, self._end_of_text = trace, separator, tokenize, end_of_text
        self._texts = [trace.prompt]
        self._parent, self._visits, self._value_sum = [NO_PARENT], [0], [0.0]
        self._reward = [float("nan")]
        self._where: dict[int, str] = {}  # of each terminal node, and of the problem (node 0)
        # A step that ends a trace is another node than the same step where the text goes on: terminals are leaves.
        self._children: dict[tuple[int, str, bool], int] = {}

    def add(self, trace: Trace, where: str) -> None:
        """Add a trace with a reward; `where` names it in a complaint.

        Raises:
            TreeDataError: it contradicts an earlier one; both are named.
        """
        assert trace.reward is not None
        first = self._where.setdefault(0, where)
        for name in ("question", "answer", "prompt"):
            if getattr(trace, name) != getattr(self._first, name):
                raise TreeDataError(
                    f"{where}: problem {trace.id!r} has another {name} here than at {first}; give one another id"
                )
        path = [0]
        texts = self._steps(trace.steps)
        for i, text in enumerate(texts, 1):
            path.append(self._child(path[-1], text, trace.reward if i == len(texts) else None, where))
        for node in path:
            self._visits[node] += 1
            self._value_sum[node] += trace.reward

    def _steps(self, steps: Sequence[str]) -> list[str]:
        """Each but the last with the separator. Separators and white space alone belong to the step before them, or
        where a trace begins with them to the one after, as in a search.
        """
        texts, blank = list[str](), ""
        for i, step in enumerate(steps, 1):
            text = step if i == len(steps) or step.endswith(self._separator) else step + self._separator
            if text.replace(self._separator, "").strip():
                texts.append(blank + text)
                blank = ""
            elif texts:
                texts[-1] += text
            else:
                blank += text
        return texts or [blank]

    def _child(self, parent: int, text: str, reward: float | None, where: str) -> int:
        """The node of a step, made if new; `reward` where the step ends its trace."""
        node = self._children.setdefault((parent, text, reward is not None), len(self._texts))
        if node == len(self._texts):
            self._texts.append(text)
            self._parent.append(parent)
            self._visits.append(0)
            self._value_sum.append(0.0)
            self._reward.append(float("nan") if reward is None else reward)
            self._where[node] = where
        elif reward is not None and reward != self._reward[node]:
            raise TreeDataError(
                f"{where}: the same trace has reward {reward} here and {self._reward[node]} at {self._where[node]}; "
                "give both their mean, or one another id"
            )
        return node

    def build(self) -> ProblemTree:
        """The tree, its tokens as `treeopo_storage.joint` has them."""
        P = len(self._texts)
        parent, reward = np.array(self._parent, np.int32), np.array(self._reward, np.float32)
        terminal = ~np.isnan(reward)
        depth = np.zeros(P, np.int32)
        for node in range(1, P):
            depth[node] = depth[parent[node]] + 1
        visits = np.array(self._visits, np.int32)
        joint = encode_tree(self._first.question, self._texts, parent, visits, self._tokenize)
        steps = [
            [*step, *(self._end_of_text if ends else ())] for step, ends in zip(joint.steps, terminal, strict=True)
        ]
        token_ids = np.array([token for step in steps for token in step], np.int32)
        return ProblemTree(
            self._first.id,
            self._first.question,
            self._first.answer,
            parent=parent,
            depth=depth,
            visits=visits,
            value_sum=np.array(self._value_sum, np.float64),
            terminal=terminal,
            reward=reward,
            action=np.array([Action.ROOT] + [Action.STEP] * (P - 1), np.int8),
            token_ids=token_ids,
            token_offsets=np.cumsum([0, *map(len, steps)]),
            teacher_logprobs=np.full(len(token_ids), np.nan, np.float32),
            texts=joint.texts,
        )
