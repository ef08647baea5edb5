"""Start states by name: where the groups of each sampler start, on a store whose every prefix has a known success."""

from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from treeopo_storage import MemoryTreeStore, ProblemTree, StoreMeta, TreeStore
from treeopo_storage.schema import Action

from treeopo.errors import ConfigError, RunError
from treeopo.records import Outcomes, PromptGroup
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.sampling.known import Known
from treeopo.rollout.sampling.names import SAMPLERS, StartStates
from treeopo.rollout.settings import CurriculumSettings, RolloutSettings

SETTINGS = RolloutSettings(group_size=4, batch_size=8)
# 0 ─ 1 ─ 2 ─ 3 ─ 6 (right)        of a problem's tree: five prefixes of depth 0, 1, 2, 3 and again 1, and three answers
# └── 4 ─ 5 (wrong)   └─ 7 (wrong)
PARENT = [-1, 0, 1, 2, 0, 4, 3, 3]
DEPTH = [0, 1, 2, 3, 1, 2, 4, 4]
PREFIXES = [0, 1, 2, 3, 4]


def tree(name: str) -> ProblemTree:
    terminal = np.isin(np.arange(8), [5, 6, 7])
    return ProblemTree(
        id=name,
        question="?",
        answer="1",
        parent=np.array(PARENT, np.int32),
        depth=np.array(DEPTH, np.int32),
        visits=np.array([3, 2, 2, 2, 1, 1, 1, 1], np.int32),
        value_sum=np.array([1.0, 1, 1, 1, 0, 0, 1, 0]),
        terminal=terminal,
        reward=np.where(terminal, np.arange(8) == 6, np.nan).astype(np.float32),
        action=np.array([Action.ROOT] + [Action.STEP] * 7, np.int8),
        token_ids=np.arange(8, dtype=np.int32),
        teacher_logprobs=np.full(8, np.nan, np.float32),
        token_offsets=np.arange(9),
        texts=tuple("?abcdefg"),
    )


@pytest.fixture(scope="module")
def store() -> TreeStore:
    kept = MemoryTreeStore(StoreMeta(tokenizer_fingerprint="characters", teacher="by hand"))
    with kept.open_writer() as writer:
        writer.append([tree("first"), tree("second")])
    return kept.open_store()


def known(success: dict[int, float], progress: float = 0.0) -> Known:
    """What is known where the first problem's prefixes have this success and the second's have one half."""
    success_P = np.full(16, 0.5)
    for node, value in success.items():
        success_P[node] = value

    def estimate(outcomes: Outcomes) -> npt.NDArray[np.float64]:
        return success_P

    return Known(progress, lambda: Outcomes(np.zeros(16), np.zeros(16)), estimate)


def draws(
    store: TreeStore, start: str, known: Known, settings: RolloutSettings = SETTINGS, groups: int = 400
) -> list[PromptGroup]:
    sampler = GroupSampler(store, settings, seed=1, start=start)
    return [sampler.draw(number, known) for number in range(groups)]


def nodes_of(groups: list[PromptGroup], problem: int = 0) -> Counter[int]:
    return Counter(prompt.node for group in groups if group.problem == problem for prompt in group.prompts)


@pytest.mark.parametrize("start", list(SAMPLERS))
@pytest.mark.parametrize("progress", [0.0, 0.99])
def test_a_group_has_unfinished_prefixes_of_one_problem_whoever_draws_it(
    store: TreeStore, start: str, progress: float
) -> None:
    for group in draws(store, start, known({0: 0.01, 1: 0.9, 2: 0.3}, progress), groups=50):
        assert len(group.prompts) == 4
        assert {prompt.node for prompt in group.prompts} <= set(PREFIXES)
        for prompt in group.prompts:
            assert prompt.depth == DEPTH[prompt.node]
            assert prompt.question_tokens == 1
            assert prompt.leads_to_success == (prompt.node != 4)  # below 4 there is a wrong answer alone


@pytest.mark.parametrize("start", list(SAMPLERS))
def test_c_completions_of_each_prefix_stand_together_in_a_group(store: TreeStore, start: str) -> None:
    for each in (2, 4):
        for group in draws(store, start, known({}), replace(SETTINGS, completions_per_prefix=each), groups=20):
            nodes = [prompt.node for prompt in group.prompts]
            assert nodes == [node for node in nodes[::each] for _ in range(each)]
    wide = RolloutSettings(group_size=8, batch_size=8, completions_per_prefix=2)
    drawn = draws(store, StartStates.UNIFORM, known({}), wide, groups=20)
    assert all(len({prompt.node for prompt in group.prompts}) == 4 for group in drawn), "prefixes repeat only by c"


def test_depth_gives_each_depth_the_same_share(store: TreeStore) -> None:
    nodes = nodes_of(draws(store, StartStates.DEPTH, known({}), RolloutSettings(group_size=1, batch_size=1), 4000))
    share = {node: count / nodes.total() for node, count in nodes.items()}
    for node, expected in {0: 1 / 4, 1: 1 / 8, 4: 1 / 8, 2: 1 / 4, 3: 1 / 4}.items():
        assert share[node] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("asked", "expected"), [(None, 0.5), (0.2, 0.2), (0.0, 0.0)])
def test_mixture_starts_its_share_of_groups_at_the_root(store: TreeStore, asked: float | None, expected: float) -> None:
    settings = replace(SETTINGS, curriculum=CurriculumSettings(root_share=asked))
    groups = draws(store, StartStates.MIXTURE, known({}), settings, 2000)
    at_root = np.mean([all(prompt.node == 0 for prompt in group.prompts) for group in groups])
    assert at_root == pytest.approx(expected, abs=0.03)


def test_any_sampler_takes_a_share_of_roots(store: TreeStore) -> None:
    settings = replace(SETTINGS, curriculum=CurriculumSettings(root_share=0.25))
    groups = draws(store, StartStates.SUCCESS, known({}), settings, 2000)
    assert np.mean([nodes_of([group], group.problem) == {0: 4} for group in groups]) == pytest.approx(0.25, abs=0.03)


def test_anneal_slides_from_the_deepest_prefixes_to_the_root_and_ends_there(store: TreeStore) -> None:
    mean_depth = []
    for progress in (0.0, 0.3, 0.59):
        groups = draws(store, StartStates.ANNEAL, known({}, progress))
        mean_depth.append(np.mean([prompt.depth for group in groups for prompt in group.prompts]))
    # UFT: Binomial(3, p), p = 0.95, 0.5 in the middle of the first 0.6 of the run, 0.05
    assert mean_depth == pytest.approx([3 * 0.95, 3 * 0.5, 3 * 0.05], abs=0.1)
    for progress in (0.6, 0.99):
        assert set(nodes_of(draws(store, StartStates.ANNEAL, known({}, progress)))) == {0}


def test_success_prefers_what_the_student_solves_half_of_the_time(store: TreeStore) -> None:
    alone = RolloutSettings(group_size=1, batch_size=1, curriculum=CurriculumSettings(success_floor=0.01))
    success = {0: 0.01, 1: 0.5, 2: 0.5, 3: 0.99, 4: 0.1}
    nodes = nodes_of(draws(store, StartStates.SUCCESS, known(success), alone, 6000))
    weight = {node: value * (1 - value) + 0.01 for node, value in success.items()}
    for node in PREFIXES:
        assert nodes[node] / nodes.total() == pytest.approx(weight[node] / sum(weight.values()), abs=0.03)


def test_success_draws_problems_by_what_their_prefixes_weigh(store: TreeStore) -> None:
    solved = dict.fromkeys(PREFIXES, 0.999)
    alone = replace(SETTINGS, curriculum=CurriculumSettings(success_floor=0.01))
    problems = Counter(group.problem for group in draws(store, StartStates.SUCCESS, known(solved), alone, 1000))
    assert problems[0] / 1000 == pytest.approx(0.011 / (0.011 + 0.26), abs=0.03)


@pytest.mark.parametrize(
    ("success", "expected"),
    [
        ({0: 0.5, 1: 0.5, 2: 0.9, 3: 0.9, 4: 0.1}, {0}),  # the root is within the band
        ({0: 0.1, 1: 0.4, 2: 0.6, 3: 0.9, 4: 0.1}, {1}),  # the shallowest within it
        ({0: 0.1, 1: 0.4, 2: 0.6, 3: 0.9, 4: 0.5}, {1, 4}),  # both of that depth
        ({0: 0.1, 1: 0.1, 2: 0.8, 3: 0.9, 4: 0.1}, {2}),  # none within it: the shallowest above
        ({0: 0.1, 1: 0.1, 2: 0.1, 3: 0.1, 4: 0.1}, {3}),  # none above it either: the deepest
        ({0: 0.9, 1: 0.9, 2: 0.9, 3: 0.5, 4: 0.3}, {3, 4}),  # solved: what fails about half of the time
        ({0: 0.9, 1: 0.9, 2: 0.9, 3: 0.9, 4: 0.1}, {4}),  # solved, and one wrong turn
        ({0: 0.9, 1: 0.9, 2: 0.9, 3: 0.9, 4: 0.9}, {0}),  # solved from everywhere
    ],
)
def test_frontier_starts_at_the_shallowest_prefixes_of_the_band_and_of_a_solved_problem_at_wrong_turns(
    store: TreeStore, success: dict[int, float], expected: set[int]
) -> None:
    assert set(nodes_of(draws(store, StartStates.FRONTIER, known(success), groups=60))) == expected


def test_a_sampler_that_asks_for_outcomes_is_refused_where_there_are_none(store: TreeStore) -> None:
    with pytest.raises(ConfigError, match="asks for the student's outcomes, and this method has none"):
        GroupSampler(store, SETTINGS, 0, StartStates.SUCCESS).draw(0, Known(0.5))


def test_roots_are_refused_where_none_can_be_started_from(store: TreeStore) -> None:
    deep = np.isin(np.arange(16), [2, 3])
    settings = replace(SETTINGS, curriculum=CurriculumSettings(root_share=0.5))
    with pytest.raises(RunError, match="no root is to be started from"):
        GroupSampler(store, settings, 0, StartStates.UNIFORM, among=deep)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"root_share": 1.5}, "root_share is 1.5"),
        ({"anneal_roots": 1.0}, "anneal_roots is 1.0"),
        ({"success_floor": 0.0}, "success_floor is 0.0"),
        ({"frontier_low": 0.8}, "frontier_low 0.8 and frontier_high 0.75 are no band"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        CurriculumSettings(**settings)
