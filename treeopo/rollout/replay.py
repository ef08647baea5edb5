"""Batches of replayed completions: prefixes of the store, completed by what the teacher said there (Tree-OPO §3.1).

    prefix p ─▶ one of its children, drawn as often as the teacher sampled it ─▶ the rest, sampled in one piece

The search chose most paths by UCT, so not every stored way from p to an answer is a sample of the teacher. What is: a
step tried at p and the rest that was then sampled in one piece (the nodes of action SOLUTION). Its log-probabilities
are pi_T, and pi_theta / pi_T is its importance weight.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numpy.random import Generator, Philox
from treeopo_storage.protocol import TreeStore
from treeopo_storage.schema import Action, ProblemTree
from treeopo_storage.streaming import problem_blocks

from treeopo.errors import RunError
from treeopo.records import Completion, FinishReason, Prompt, PromptGroup, Rollout, RolloutGroup, TrainBatch
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.sampling.known import Known
from treeopo.rollout.settings import RolloutSettings
from treeopo.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class Continuations:
    """The teacher's own continuations of the prefixes of a store, P nodes; each is known by its first step.

    last_P: the terminal node that the continuation through each node ends in, -1 where there is none to replay.
    times_P: how often the teacher is expected to have sampled its first step. tries_P: how often it was asked there.
    unknown: continuations left out because a teacher log-probability is missing; too_long: because of their length.
    """

    last_P: npt.NDArray[np.int64]
    times_P: npt.NDArray[np.float64]
    tries_P: npt.NDArray[np.int64]
    unknown: int
    too_long: int

    @property
    def count(self) -> int:
        return int((self.last_P >= 0).sum())


def find_continuations(store: TreeStore, max_sequence_tokens: int) -> Continuations:
    """Read a store once and find what can be replayed from it.

    Raises:
        RunError: nothing can, or steps of the store are not samples of the teacher's own distribution.
    """
    _check_steps_are_samples(store)
    structure = store.structure()
    parent_P = structure.parent_row
    last_P = _ends(parent_P, structure.depth, structure.terminal, structure.action)
    logprob_P = np.concatenate(
        [_step_logprobs(tree) for block in problem_blocks(structure.first_node) for tree in store.problems(*block)]
    )
    is_said = (last_P >= 0) & (parent_P >= 0)
    is_known = is_said & np.isfinite(_chain_sums(logprob_P, parent_P, structure.depth, structure.action))
    fits = structure.prefix_lengths[last_P] <= max_sequence_tokens
    unknown, too_long = int((is_said & ~is_known).sum()), int((is_known & ~fits).sum())
    if not (is_known & fits).any():
        raise RunError(
            f"the store has no teacher continuation to replay: {unknown} lack log-probabilities (built at another "
            f"temperature than 1, or imported) and {too_long} are longer than {max_sequence_tokens} tokens; build it "
            "with search.temperature 1, or train with an engine"
        )
    tries_P = _tries(store, parent_P)
    return Continuations(
        last_P=np.where(is_known & fits, last_P, -1),
        times_P=expected_times(np.exp(logprob_P), tries_P[parent_P]),
        tries_P=tries_P,
        unknown=unknown,
        too_long=too_long,
    )


def _check_steps_are_samples(store: TreeStore) -> None:
    """A step merged by text lacks the probability of its other wordings; A3 to A5 ask under prompts of their own."""
    search = store.meta.search.get("search")
    settings = search if isinstance(search, dict) else {}
    merge, actions = settings.get("merge", "tokens"), settings.get("actions", [])
    if merge != "tokens":
        asked = f"search.merge {merge}, whose steps stand for other wordings too"
    elif not set(actions) <= {"step", "solution"}:
        asked = f"search.actions {', '.join(actions)}, not all of them asked for under the plain prompt"
    else:
        return
    raise RunError(
        f"the store was built with {asked}: there is no teacher's distribution to weigh them by; use tree-opo"
    )


def expected_times(probability: npt.NDArray[np.float64], tries: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """How often a step of this probability was sampled in `tries` independent tries, given that it was at all.

    E[times | times > 0] = n p / (1 - (1 - p)^n). A store keeps each step once; drawing in proportion to this, with the
    weight `sum / n` of `ReplayBatches`, gives sums over kept steps the expectation of a mean over all tries.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        times = tries * probability / -np.expm1(tries * np.log1p(-np.minimum(probability, 1.0)))
    return np.where(probability > 1e-12, times, 1.0)


class ReplayBatches:
    """Batch b is groups [b G, (b + 1) G) of prefixes that can be replayed; a function of (seed, b, store) and of the
    length of the run, `steps`.

    A prefix whose kept steps were sampled more or less often than it was asked weighs accordingly: that, and the
    weights pi_theta / pi_T of the whole continuation, make the gradient that of completions sampled from the student.
    """

    def __init__(
        self,
        store: TreeStore,
        assemble: Callable[[int, Sequence[RolloutGroup]], Awaitable[TrainBatch]],
        settings: RolloutSettings,
        seed: int,
        start: str,
        steps: int,
    ) -> None:
        self.found = find_continuations(store, settings.max_sequence_tokens)
        structure = store.structure()
        self._store = store
        self._first_node = structure.first_node
        replayed = np.flatnonzero(self.found.last_P >= 0)
        parents = structure.first_node[structure.problem[replayed]] + structure.parent[replayed]
        can_replay = np.zeros(len(structure.parent), np.bool_)
        can_replay[parents] = True
        self.sampler = GroupSampler(store, settings, seed, start, among=can_replay)
        self._assemble = assemble
        self._size = settings.groups_per_batch
        self._seed = seed
        self._steps = steps

    async def batch(self, number: int) -> TrainBatch:
        known = Known(number / self._steps)
        drawn = [self.sampler.draw(number * self._size + index, known) for index in range(self._size)]
        replayed = [
            [self.replay(group, prompt, number, index) for index, prompt in enumerate(group.prompts)] for group in drawn
        ]
        groups = [
            RolloutGroup(group, tuple(rollout for rollout, _ in rollouts))
            for group, rollouts in zip(drawn, replayed, strict=True)
        ]
        weights = [weight for rollouts in replayed for _, weight in rollouts]
        batch = await self._assemble(number, groups)
        sequences = tuple(
            replace(row, advantages=row.advantages * np.float32(weight))
            for row, weight in zip(batch.sequences, weights, strict=True)
        )
        return replace(batch, sequences=sequences)

    def replay(self, group: PromptGroup, prompt: Prompt, version: int, index: int) -> tuple[Rollout, float]:
        """One of the teacher's continuations of a prefix, and the weight of the prefix: expected samples per try."""
        tree, first = self._store.problem(group.problem), int(self._first_node[group.problem])
        children = np.flatnonzero(tree.parent == prompt.node)
        children = children[self.found.last_P[first + children] >= 0]
        times = self.found.times_P[first + children]
        seed = derive_seed(self._seed, group.number, index)
        random = Generator(Philox(key=seed))
        child = int(random.choice(children, p=times / times.sum()))
        weight = float(times.sum() / self.found.tries_P[first + prompt.node])
        return _rollout(tree, prompt, child, int(self.found.last_P[first + child]) - first, version, seed), weight


def _rollout(tree: ProblemTree, prompt: Prompt, child: int, last: int, version: int, seed: int) -> Rollout:
    path = tree.path(last)
    steps = path[path.index(child) :]
    spans = [slice(tree.token_offsets[step], tree.token_offsets[step + 1]) for step in steps]
    token_ids = np.concatenate([tree.token_ids[span] for span in spans])
    completion = Completion(
        token_ids=token_ids,
        logprobs=np.concatenate([tree.teacher_logprobs[span] for span in spans]),
        versions=np.full(len(token_ids), version, np.int32),
        text="".join(tree.texts[step] for step in steps),
        finish_reason=FinishReason.STOP,
    )
    return Rollout(prompt, completion, float(tree.reward[last]), served_version=version, seed=seed)


def _tries(store: TreeStore, parent_P: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How often the teacher was asked for a step at each node: once a visit, until `branching` tries are spent; at
    least as often as the node has children.
    """
    search = store.meta.search.get("search")
    branching = search.get("branching") if isinstance(search, dict) else None
    visits = np.asarray(store.structure().visits, np.int64)
    children = np.bincount(parent_P[parent_P >= 0], minlength=len(parent_P))
    return np.maximum(children, visits if branching is None else np.minimum(visits, int(branching)))


def _step_logprobs(tree: ProblemTree) -> npt.NDArray[np.float64]:
    """Summed teacher log-probability of each node's step, (P,); NaN where one of them is."""
    return np.add.reduceat(tree.teacher_logprobs.astype(np.float64), tree.token_offsets[:-1])


def _ends(
    parent_P: npt.NDArray[np.int64],
    depth_P: npt.NDArray[np.int32],
    terminal_P: npt.NDArray[np.bool_],
    action_P: npt.NDArray[np.int8],
) -> npt.NDArray[np.int64]:
    """The terminal node that each node reaches along nodes of action SOLUTION, itself if terminal; -1 where none."""
    ends = np.where(terminal_P, np.arange(len(parent_P)), -1)
    for depth in range(int(depth_P.max(initial=0)), 0, -1):
        said = np.flatnonzero((depth_P == depth) & (action_P == Action.SOLUTION))
        ends[parent_P[said]] = ends[said]
    return ends


def _chain_sums(
    value_P: npt.NDArray[np.float64],
    parent_P: npt.NDArray[np.int64],
    depth_P: npt.NDArray[np.int32],
    action_P: npt.NDArray[np.int8],
) -> npt.NDArray[np.float64]:
    """Each node's value plus those of the nodes of action SOLUTION that follow it."""
    sums = value_P.copy()
    for depth in range(int(depth_P.max(initial=0)), 0, -1):
        said = np.flatnonzero((depth_P == depth) & (action_P == Action.SOLUTION))
        sums[parent_P[said]] += sums[said]
    return sums
