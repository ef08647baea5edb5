"""The draw of a group is a pure function of (seed, number, store)."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from treeopo_storage import TreeStore

from treeopo.errors import RunError
from treeopo.rollout.memory import OutcomeMemory
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.sampling.names import StartStates
from treeopo.rollout.settings import RolloutSettings

SETTINGS = RolloutSettings(group_size=4, batch_size=8)


def nodes(sampler: GroupSampler, number: int) -> tuple[int, list[int]]:
    group = sampler.draw(number, OutcomeMemory(sampler.structure, SETTINGS, steps=100).known(0))
    return group.problem, [prompt.node for prompt in group.prompts]


@pytest.mark.parametrize("start", list(StartStates))
def test_a_group_is_the_same_in_any_order_and_from_any_sampler(searched_store: TreeStore, start: StartStates) -> None:
    forwards = GroupSampler(searched_store, SETTINGS, seed=3, start=start)
    backwards = GroupSampler(searched_store, SETTINGS, seed=3, start=start)
    expected = [nodes(forwards, number) for number in range(20)]
    assert [nodes(backwards, number) for number in reversed(range(20))] == expected[::-1]


def test_seed_and_number_both_change_the_draw(searched_store: TreeStore) -> None:
    first, second = (GroupSampler(searched_store, SETTINGS, seed=seed, start=StartStates.UNIFORM) for seed in (0, 1))
    assert len({str(nodes(first, number)) for number in range(30)}) > 20
    assert [nodes(first, number) for number in range(9)] != [nodes(second, number) for number in range(9)]


def test_prefixes_are_never_finished_solutions_and_their_tokens_are_the_path_to_the_root(
    searched_store: TreeStore,
) -> None:
    sampler = GroupSampler(searched_store, SETTINGS, seed=0, start=StartStates.UNIFORM)
    for number in range(40):
        group = sampler.draw(number)
        tree = searched_store.problem(group.problem)
        assert np.array_equal(group.parent, tree.parent)
        for prompt in group.prompts:
            assert not tree.terminal[prompt.node]
            assert np.array_equal(prompt.token_ids, tree.prefix_tokens(prompt.node))


def test_problems_are_drawn_in_proportion_to_their_usable_prefixes(searched_store: TreeStore) -> None:
    sampler = GroupSampler(searched_store, SETTINGS, seed=0, start=StartStates.UNIFORM)
    usable = np.array([(~searched_store.problem(index).terminal).sum() for index in range(6)])
    drawn = Counter(sampler.draw(number).problem for number in range(6000))
    observed = np.array([drawn[index] for index in range(6)])
    expected = 6000 * usable / usable.sum()
    assert ((observed - expected) ** 2 / expected).sum() < 20.5  # chi-squared with 5 degrees of freedom, p = 0.001


def test_prefixes_repeat_only_where_a_problem_has_fewer_than_a_group_needs(searched_store: TreeStore) -> None:
    small, large = (
        GroupSampler(
            searched_store, replace(SETTINGS, group_size=size, batch_size=size), seed=0, start=StartStates.UNIFORM
        )
        for size in (2, 64)
    )
    assert all(len(set(nodes(small, number)[1])) == 2 for number in range(50))
    assert all(len(nodes(large, number)[1]) == 64 for number in range(5))


def test_grpo_groups_repeat_the_root(searched_store: TreeStore) -> None:
    sampler = GroupSampler(searched_store, SETTINGS, seed=0, start=StartStates.ROOT)
    assert all(nodes(sampler, number)[1] == [0, 0, 0, 0] for number in range(20))


def test_trace_groups_lie_on_one_path(searched_store: TreeStore) -> None:
    sampler = GroupSampler(searched_store, SETTINGS, seed=0, start=StartStates.TRACE)
    for number in range(30):
        problem, drawn = nodes(sampler, number)
        deepest = max(drawn, key=lambda node: searched_store.problem(problem).depth[node])
        assert set(drawn) <= set(searched_store.problem(problem).path(deepest))


def test_a_prefix_beyond_max_prompt_tokens_is_excluded_and_counted_never_cut(searched_store: TreeStore) -> None:
    limit = 6  # the question is 3 tokens, a step is 3
    settings = replace(SETTINGS, max_prompt_tokens=limit)
    sampler = GroupSampler(searched_store, settings, seed=0, start=StartStates.UNIFORM)
    structure = searched_store.structure()
    unfinished = ~structure.terminal
    assert sampler.too_long == (structure.prefix_lengths[unfinished] > limit).sum() > 0
    assert sampler.usable_count == (structure.prefix_lengths[unfinished] <= limit).sum()
    assert max(len(prompt.token_ids) for number in range(50) for prompt in sampler.draw(number).prompts) <= limit


def test_a_store_without_a_usable_prefix_is_refused(searched_store: TreeStore) -> None:
    with pytest.raises(RunError, match=r"no prefix to start from .* longer than 1 tokens"):
        GroupSampler(
            searched_store,
            replace(SETTINGS, max_prompt_tokens=1, max_sequence_tokens=9),
            seed=0,
            start=StartStates.UNIFORM,
        )
