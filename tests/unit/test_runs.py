"""What the composition root decides: where a method's groups start, and which store they are drawn from."""

from pathlib import Path
from typing import Any

import pytest
from treeopo_storage import TreeStore, open_store

from tests.tiny_models import byte_tokenizer
from treeopo import runs
from treeopo.advantage import Method
from treeopo.config import TrainConfig, load_config
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError
from treeopo.rollout.sampler import Start


def plan(**flags: Any) -> tuple[Start, Method]:
    given = {"store": "s", "output": "o", **{name.replace("__", "."): value for name, value in flags.items()}}
    start, advantage = runs._plan(load_config(TrainConfig, file=None, flags=given))
    return start, advantage.method


def test_grpo_starts_at_the_root_and_is_standardised_unless_told_otherwise() -> None:
    assert plan(method="grpo") == (Start.ROOT, Method.GRPO)
    config = {"store": "s", "output": "o", "method": "grpo"}
    _, advantage = runs._plan(load_config(TrainConfig, file=None, flags=config))
    assert advantage.standardize


@pytest.mark.parametrize("method", set(Method) - {Method.GRPO, Method.MC, Method.TRACE})
def test_tree_opo_draws_prefixes_for_every_baseline_and_program(method: Method) -> None:
    assert plan(advantage__method=str(method)) == (Start.PREFIX, method)


def test_the_trace_ablation_draws_from_one_trace() -> None:
    assert plan(advantage__method="trace") == (Start.TRACE, Method.TRACE)


@pytest.mark.parametrize(
    "flags",
    [
        {"advantage__method": "grpo"},
        {"advantage__method": "mc"},
        {"advantage__method": "qp-hard", "advantage__target": "mc"},
        {"advantage__method": "expectation", "advantage__scope": "history"},
    ],
)
def test_what_the_trainer_cannot_feed_is_refused_before_anything_starts(flags: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"grpo belongs to|takes no extra rollouts"):
        plan(**flags)


def test_a_re_tokenised_store_says_the_same_in_other_tokens_and_is_made_once(
    searched_store: TreeStore, tmp_path: Path
) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "model")
    tokenizer = ModelTokenizer(str(tmp_path / "model"))
    notices: list[str] = []
    for _ in range(2):
        copy = runs._retokenized(searched_store, tmp_path / "copy.zarr", tokenizer, notices.append)
    assert notices == [f"{searched_store.node_count} prefixes re-tokenised, 0 no longer decode to their text"]
    assert copy.meta.tokenizer_fingerprint == tokenizer.fingerprint
    tree = open_store(tmp_path / "copy.zarr").problem(2)
    text = "".join(searched_store.problem(2).texts[step] for step in tree.path(3))
    assert tokenizer.decode(tree.prefix_tokens(3).tolist()) == text
