"""The tokens of a tree's texts: every solution is encoded as a whole, and its steps are cut out of that by offsets.

Encoded one by one, steps would hold tokens that nobody writes there: a space before each ("▁5" after "\\n\\n"), or one
token "\\n\\n" where the whole text has two because a digit follows.

    the prompt       is encoded alone, for it is asked before anything follows it, and an evaluation asks it so; its
                     last tokens are those that it has before a word, as the tokenizer sees to
    which encoding   a node's tokens come from the solution through its most visited child, and that one's, down to a
                     leaf (of equals the first): where solutions that share a step give it different tokens, it decides
    which step       a token belongs to the step that it starts in; one that reaches into the next step takes the
                     characters with it, as a search's steps do, if every solution through the node has it there. If
                     not, the text is cut at the step's end, and what follows is encoded on its own
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from treeopo_storage.schema import NO_PARENT, ProblemTree


class Encoded(NamedTuple):
    """Tokens of a text (T,): ids, and the characters [starts, ends) each stands for, in order; a token that the
    tokenizer adds at the beginning stands for none."""

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    def first(self, count: int) -> "Encoded":
        """The first `count` tokens."""
        return Encoded(self.ids[:count], self.starts[:count], self.ends[:count])

    def after(self, count: int, shift: int = 0) -> "Encoded":
        """Without the first `count` tokens, offsets moved by `shift` characters."""
        return Encoded(self.ids[count:], self.starts[count:] + shift, self.ends[count:] + shift)


class TreeTokenizer(Protocol):
    """What trees need of a tokenizer."""

    def encode_solution(self, question: str, prompt: str, steps: str) -> Encoded:
        """Tokens of `prompt + steps` as a sequence of its own, with what the tokenizer puts before one. The names of
        special tokens are text in the question and the steps, and these tokens in the rest of the prompt."""
        ...

    def encode_after(self, text: str) -> Encoded:
        """Tokens of a text that goes on after another and is gone on with, no special token among them."""
        ...

    def reads_as(self, token_ids: Sequence[int], text: str) -> bool:
        """Whether a sequence decodes to `text`, apart from what the tokenizer puts before one and an end of text."""
        ...


class JointTree(NamedTuple):
    """texts and steps (token ids), one a node: the given texts but for the characters that a token took along, which it
    did at the end of `moved` steps."""

    texts: tuple[str, ...]
    steps: list[npt.NDArray[np.int32]]
    moved: int


def encode_tree(
    question: str,
    texts: Sequence[str],
    parent: npt.NDArray[np.int32],
    visits: npt.NDArray[np.int32],
    tokenize: TreeTokenizer,
) -> JointTree:
    """Tokens of a tree of P texts, parents first, the prompt at the root: parent (P,), visits (P,)."""
    joint = _Joint(question, texts, parent, visits, tokenize)
    steps = [joint.take(node) for node in range(len(texts))]
    return JointTree(tuple(map(joint.text, range(len(texts)))), steps, joint.moved)


def changed_prefixes(tree: ProblemTree, tokenize: TreeTokenizer) -> int:
    """How many prefixes do not decode to their text."""
    return sum(
        not tokenize.reads_as(tree.prefix_tokens(node).tolist(), "".join(tree.texts[step] for step in tree.path(node)))
        for node in range(tree.node_count)
    )


class _Joint:
    """A tree while its nodes are encoded, parents first. `covered`: the characters of its solution that a node's prefix
    holds; `rest`: what is left of the encoding that it was cut out of, None where that cannot be gone on with."""

    def __init__(
        self,
        question: str,
        texts: Sequence[str],
        parent: npt.NDArray[np.int32],
        visits: npt.NDArray[np.int32],
        tokenize: TreeTokenizer,
    ) -> None:
        self._tokenize = tokenize
        self._parent: list[int] = parent.tolist()
        self._children: list[list[int]] = [[] for _ in texts]
        self._whole, self._end = [texts[0]], [len(texts[0])]
        for node, up in enumerate(self._parent[1:], 1):
            self._children[up].append(node)
            self._whole.append(self._whole[up] + texts[node])
            self._end.append(len(self._whole[node]))
        self._leaf = list(range(len(texts)))
        for node in range(len(texts) - 1, -1, -1):
            if self._children[node]:
                self._leaf[node] = self._leaf[max(self._children[node], key=lambda child: visits[child])]
        self._encoded = {
            leaf: tokenize.encode_solution(question, texts[0], self._whole[leaf][len(texts[0]) :])
            for leaf in set(self._leaf)
        }
        self._prompt = tokenize.encode_solution(question, texts[0], "")
        self._covered = [0] * len(texts)
        self._rest: list[Encoded | None] = [None] * len(texts)

    @property
    def moved(self) -> int:
        return sum(covered > end for covered, end in zip(self._covered, self._end, strict=True))

    def text(self, node: int) -> str:
        """Of the step whose tokens were taken."""
        up = self._parent[node]
        start = 0 if up == NO_PARENT else self._covered[up]
        return self._whole[self._leaf[node]][start : self._covered[node]]

    def take(self, node: int) -> npt.NDArray[np.int32]:
        """The tokens of a node's step; its ancestors' were taken before."""
        source, end = self._source(node), self._end[node]
        if not self._children[node] or node == 0:
            self._covered[node] = end
            return source.ids
        count = int(np.searchsorted(source.starts, end))
        reach = int(source.ends[count - 1]) if count else end
        if reach <= end or self._is_agreed(node, source, count, reach):
            self._covered[node], self._rest[node] = max(reach, end), source.after(count)
            return source.ids[:count]
        whole = int(np.searchsorted(source.ends, end, side="right"))
        broken = self._whole[node][int(source.starts[whole]) : end]
        self._covered[node] = end
        return np.concatenate([source.ids[:whole], self._tokenize.encode_after(broken).ids])

    def _source(self, node: int) -> Encoded:
        """What the node's tokens are the beginning of."""
        up, own = self._parent[node], self._encoded[self._leaf[node]]
        if up == NO_PARENT:
            return self._prompt
        rest = self._rest[up]
        if rest is not None and self._leaf[node] == self._leaf[up]:
            return rest
        covered = self._covered[up]
        before = int(np.searchsorted(own.starts, covered))
        if before == 0 or own.ends[before - 1] <= covered:
            return own.after(before)
        following: Encoded = self._tokenize.encode_after(self._whole[self._leaf[node]][covered:])
        return following.after(0, covered)

    def _is_agreed(self, node: int, source: Encoded, count: int, reach: int) -> bool:
        """Whether every solution through a node has the tokens that its step would hold, and each child a token
        after them."""
        for child in self._children[node]:
            same = self._leaf[child] == self._leaf[node]
            own = source if same else self._encoded[self._leaf[child]]
            until, child_until = np.searchsorted(own.starts, [self._end[node], self._end[child]]).tolist()
            if until < count or until == child_until or own.ends[until - 1] != reach:
                return False
            if not np.array_equal(own.ids[until - count : until], source.ids[:count]):
                return False
        return True
