"""The registry: every name runs, and what a method cannot use is refused before anything starts."""

from typing import Any

import pytest
from treeopo_cli import render
from treeopo_cli.main import app
from typer.testing import CliRunner

from treeopo.advantage import AdvantageMethod as Advantage
from treeopo.advantage import Scope
from treeopo.config import TrainConfig, load_config
from treeopo.errors import ConfigError
from treeopo.methods import METHODS
from treeopo.rollout.sampling.names import StartStates


def config(**flags: Any) -> TrainConfig:
    given = {"store": "s", "output": "o", **{name.replace("__", "."): value for name, value in flags.items()}}
    return load_config(TrainConfig, file=None, flags=given)


def plan(**flags: Any) -> tuple[str, Advantage]:
    start, advantage = config(**flags).group_plan
    return start, advantage.method


def test_grpo_starts_at_the_root_and_is_standardised_unless_told_otherwise() -> None:
    assert plan(method="grpo") == (StartStates.ROOT, Advantage.GRPO)
    assert config(method="grpo").group_plan[1].standardize


@pytest.mark.parametrize("advantage", sorted(set(Advantage) - {Advantage.GRPO, Advantage.TRACE}))
def test_tree_opo_draws_prefixes_for_every_baseline_and_program(advantage: Advantage) -> None:
    assert plan(advantage__method=str(advantage)) == (StartStates.UNIFORM, advantage)


def test_the_trace_ablation_draws_from_one_trace() -> None:
    assert plan(advantage__method="trace") == (StartStates.TRACE, Advantage.TRACE)


@pytest.mark.parametrize("advantage", ["trace", "expectation", "optimistic", "pessimistic", "posterior"])
def test_tree_opo_counts_the_runs_history_where_a_baseline_can(advantage: str) -> None:
    assert config(advantage__method=advantage, advantage__scope="history").group_plan[1].scope is Scope.HISTORY


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"advantage.method": "grpo"}, "grpo belongs to --method grpo"),
        ({"advantage.baseline_rollouts": 8}, "only mc takes extra rollouts"),
        ({"advantage.method": "mc", "advantage.baseline_rollouts": 0}, "baseline_rollouts = 0: expected at least 1"),
        ({"method": "tree-opo-replay", "advantage.method": "mc"}, "mc needs completions of the student's"),
        (
            {"method": "tree-opo-replay", "advantage.method": "qp-hard", "advantage.target": "mc"},
            "qp-hard needs completions of the student's",
        ),
        (
            {"method": "tree-opo-replay", "advantage.scope": "history"},
            "scope history needs completions",
        ),
        ({"method": "tree-opo-replay", "rollout.sampling": "success"}, "sampling success needs completions"),
        ({"method": "tree-opo-replay", "rollout.sampling": "frontier"}, "sampling frontier needs completions"),
        (
            {"method": "tree-opo-replay", "rollout.no_signal": "redraw"},
            "tree-opo-replay any group is a signal",
        ),
        ({"method": "reinforce-kl", "rollout.no_signal": "redraw"}, "to method reinforce-kl any group is a signal"),
        ({"method": "grpo", "rollout.sampling": "depth"}, "rollout.sampling: method grpo starts at the root"),
        (
            {"method": "grpo", "rollout.completions_per_prefix": 2},
            "completions_per_prefix: method grpo starts",
        ),
        ({"method": "grpo", "rollout.curriculum.root_share": 0.5}, "curriculum: method grpo starts at the root"),
        ({"method": "sft", "rollout.no_signal": "redraw"}, "rollout.no_signal: method sft has no groups"),
        ({"method": "sft", "rollout.memory.retention": 0.5}, "rollout.memory: method sft has no groups"),
        ({"rollout.curriculum.anneal_roots": 0.2}, "anneal_roots is for rollout.sampling anneal, and this is uniform"),
        (
            {"rollout.sampling": "anneal", "rollout.curriculum.frontier_low": 0.2},
            "frontier_low is for rollout.sampling frontier, and this is anneal",
        ),
        ({"rollout.completions_per_prefix": 3}, "completions_per_prefix is 3; it must divide group_size 8"),
        ({"rollout.no_signal": "maybe"}, "no_signal: Input should be 'keep' or 'redraw'"),
        ({"rollout.candidates": 0}, "candidates is 0"),
    ],
)
def test_what_a_method_would_ignore_or_the_trainer_cannot_feed_is_refused_with_the_settings(
    flags: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config(TrainConfig, file=None, flags={"store": "s", "output": "o", **flags})
    assert "\n" not in str(caught.value)


def test_a_sampler_of_a_users_own_may_read_every_setting_of_the_curriculum() -> None:
    own = {"rollout__sampling": "my.module:Sampler", "rollout__curriculum__frontier_low": 0.1}
    assert config(**own).rollout.curriculum.frontier_low == 0.1


def test_grpo_may_draw_groups_without_a_signal_again() -> None:
    assert config(method="grpo", rollout__no_signal="redraw").rollout.candidates_per_batch == 16 * 4


def test_an_unknown_method_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no method 'ppo'; choose one of tree-opo, grpo"):
        config(method="ppo")


def test_every_method_is_listed_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render.console, "width", 200)
    out = CliRunner().invoke(app, ["methods"]).output
    for method in METHODS.values():
        assert method.name in out
        assert all(need in out for need in method.needs)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            {"method": "sft", "advantage.method": "loo"},
            "advantage is for methods tree-opo, grpo, tree-opo-kl, tree-opo-replay; method sft has no use",
        ),
        ({"method": "dvo", "rollout.temperature": 0.7}, "method dvo samples nothing, leave it at 1"),
        ({"method": "sft", "dvo.beta": 0.2}, "dvo is for method dvo; method sft has no use for it, leave it out"),
        ({"method": "dvo", "dvo.beta": 0.0}, "dvo.beta is 0.0; it must be positive"),
        ({"method": "dvo", "solutions.problems": "staged-arithmetic"}, "solutions is for method sft"),
        ({"method": "sft", "solutions.problems": "staged-arithmetic"}, "give a store or solutions.problems"),
        ({"method": "sft", "solutions.limit": 4}, "go with solutions.problems"),
        ({"method": "tree-opo", "kl.beta": 0.2}, "kl is for method tree-opo-kl"),
        ({"method": "reinforce-kl", "critic.decay": 1.0}, "critic is for method actor-critic"),
        ({"method": "grpo", "advantage.method": "loo"}, "method grpo z-scores the rewards of a group"),
        ({"method": "grpo", "teacher": "big"}, "teacher is for methods tree-opo-kl, reinforce-kl, mcts-reinforce"),
        ({"method": "reinforce-kl", "advantage.method": "loo"}, "advantage is for methods tree-opo, grpo"),
        (
            {"method": "reinforce-kl-baseline", "rollout.group_size": 1},
            "compares the completions of a group; rollout.group_size must be 2",
        ),
        ({"method": "tree-opo-kl", "kl.beta": 0.0}, "kl.beta is 0.0; it must be positive"),
        ({"method": "tree-opo-kl", "kl.optimizer": "summed", "kl.learning_rate": 1e-3}, "kl.optimizer separate"),
        ({"method": "tree-opo-kl", "kl.estimate": "full", "kl.weight_cap": 2.0}, "kl.estimate sampled"),
        ({"method": "actor-critic", "critic.width": 128}, "critic.architecture decoder"),
        ({"method": "actor-critic", "steps": 20}, "no step is left to the policy"),
        ({"method": "actor-critic", "critic.discount": 1.5}, "critic.discount is 1.5; gamma lies in [0, 1]"),
    ],
)
def test_a_setting_that_a_method_would_ignore_is_refused(flags: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(TrainConfig, file=None, flags={"store": "s", "output": "o", **flags})
    assert complaint in str(error.value)


def test_a_store_is_trees_zarr_unless_solutions_are_learned_from() -> None:
    assert str(load_config(TrainConfig, file=None, flags={"output": "o"}).store) == "trees.zarr"
    flags = {"output": "o", "method": "sft", "solutions.problems": "staged-arithmetic"}
    alone = load_config(TrainConfig, file=None, flags=flags)
    assert alone.store is None
    assert TrainConfig.model_validate(alone.model_dump(mode="json")) == alone
