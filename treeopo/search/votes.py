"""Self-consistency (Wang et al., arXiv 2203.11171) as the reward of a search, as in rStar: no gold answer needed."""

from collections import Counter

from treeopo.search.tree import ROOT_NODE, GrowingTree


class Votes:
    """The final answers of one problem's traces, by terminal node; empty where a trace has none.

    The value of a trace is the share of all traces so far, each as often as it was sampled, that end in its answer. One
    without an answer is worth 0, and counts among all. As every new trace changes the shares, `revalue` sets the value
    sums of the whole tree anew: value_sum(node) = Σ over the terminal nodes below of visits × share.
    """

    def __init__(self) -> None:
        self._answers: dict[int, str] = {}

    def cast(self, node: int, answer: str) -> None:
        """Terminal node `node` ends in `answer`; its votes are its visits."""
        self._answers[node] = answer

    def revalue(self, tree: GrowingTree) -> None:
        """Set the tree's value sums to those of the votes that its visits are."""
        counts, traces = self._count(tree), tree.visits_P[ROOT_NODE]
        agreeing_P = [0] * len(tree.parent_P)  # whole numbers until the last division, so that equal values are equal
        for node in range(len(agreeing_P) - 1, ROOT_NODE, -1):  # children before parents
            if node in self._answers:
                agreeing_P[node] = tree.visits_P[node] * counts[self._answers[node]]
            agreeing_P[tree.parent_P[node]] += agreeing_P[node]
        tree.value_sum_P = [agreeing / traces for agreeing in agreeing_P]

    def elect(self, tree: GrowingTree) -> None:
        """Set each terminal reward to 1 where the answer has most votes (of equals the first found), else to 0."""
        counts = self._count(tree)
        winner = max(counts, key=counts.__getitem__, default=None)
        for node, answer in self._answers.items():
            tree.reward_P[node] = float(answer == winner)

    def _count(self, tree: GrowingTree) -> Counter[str]:
        """Votes by answer, in the order found; no answer is no vote."""
        counts: Counter[str] = Counter()
        for node, answer in self._answers.items():
            if answer:
                counts[answer] += tree.visits_P[node]
        return counts
