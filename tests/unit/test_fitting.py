"""Micro-batches fit the memory that is left, smaller ones after memory ran out, and the gradient is the same."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tests.gradients import step
from tests.tiny_models import random_qwen2
from tests.unit.test_packing import SETTINGS, distance, group_batch, policy, windowed
from treeopo.config import TrainConfig, load_config
from treeopo.errors import ConfigError, OutOfMemoryError
from treeopo.learner import fitting
from treeopo.learner.fitting import Rung, ladder
from treeopo.learner.footprint import Footprint, LiveBytes, generous, measure
from treeopo.learner.learner import Learner
from treeopo.learner.losses import Losses, SeparateLoss
from treeopo.learner.losses.cross_entropy import CrossEntropy
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.microbatch import micro_batches
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.room import Room
from treeopo.learner.settings import LearnerSettings, LoraSettings
from treeopo.learner.teacher import TeacherModel

CPU, GPU = torch.device("cpu"), torch.device("cuda")
DROPOUT = LoraSettings(rank=4, alpha=8, dropout=0.1)
NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


def learner(path: Path, settings: LearnerSettings, told: list[str] | None = None, **options: Any) -> Learner:
    losses: Losses = [PolicyGradient(settings), CrossEntropy()]
    notify = (told if told is not None else []).append
    return Learner(
        policy(path, lora=settings.lora, **options), losses, settings, steps=9, temperature=1.0, notify=notify
    )


def test_the_rungs_halve_the_tokens_down_to_useful_ones_before_activations_are_computed_again() -> None:
    rungs = ladder(LearnerSettings(), GPU, sharded=False)
    assert rungs[:5] == [(16384, False), (8192, False), (4096, False), (2048, False), (16384, True)]
    assert rungs[-1] == (1, True)
    assert ladder(LearnerSettings(gradient_checkpointing=False), CPU, sharded=False)[-1] == (1, False)
    asked = ladder(LearnerSettings(microbatch_tokens=100), CPU, sharded=False)
    assert asked[:3] == [(100, False), (100, True), (50, True)]
    always = ladder(LearnerSettings(gradient_checkpointing=True), CPU, sharded=False)
    assert all(recompute for _, recompute in always)
    assert ladder(LearnerSettings(), GPU, sharded=True)[0] == (2048, True)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["packs and shares", "sees windows"])
def test_a_few_tokens_tell_what_a_pass_over_many_takes(
    tmp_path: Path, qwen2: Path, family: str, recompute: bool
) -> None:
    adapted = policy(qwen2 if family == "packs and shares" else windowed(tmp_path), lora=DROPOUT)
    adapted.recompute_activations(recompute)
    before = torch.get_rng_state()
    found = measure(adapted, share=adapted.packs)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(weight.grad is None for weight in adapted.trainable)
    rows = [row for seed in range(4) for row in group_batch(seed).sequences]
    (micro,) = micro_batches(rows, 10_000, CPU, share=adapted.packs)
    adapted.model.train()
    with LiveBytes() as live:
        hidden = adapted.packed_hidden_states(micro.packing)
        torch.autograd.grad(hidden.sum(), adapted.trainable)
    assert found.of(micro) == pytest.approx(live.peak, rel=0.1)
    assert generous(adapted, micro) > 2 * live.peak


def test_live_bytes_are_those_of_new_tensors_until_they_are_gone() -> None:
    given = torch.ones(1000)
    with LiveBytes() as live:
        one = given + 1
        view = one.view(10, 100)
        del one
        two = view * 2
        assert live.peak == 8000
        del view, two
        gc.collect()
        _ = given.new_empty(500)
    assert live.peak == 8000


def gradient_within(
    monkeypatch: pytest.MonkeyPatch, path: Path, size: float, told: list[str] | None = None, **changes: Any
) -> tuple[list[Tensor], dict[str, float]]:
    """The step's gradient where `size` bytes are left."""
    monkeypatch.setattr(fitting, "room", lambda device, limit: Room(size, "a test"))
    monkeypatch.setattr(fitting, "LARGEST", {"cpu": 512})
    monkeypatch.setattr(fitting, "USEFUL", {"cpu": 64})
    return step(learner(path, replace(SETTINGS, **changes), told), group_batch())


def test_what_fits_is_planned_from_what_is_left_and_the_gradient_is_the_same(
    monkeypatch: pytest.MonkeyPatch, qwen2: Path
) -> None:
    whole, metrics = gradient_within(monkeypatch, qwen2, float("inf"))
    assert (metrics["learner/microbatch_tokens"], metrics["learner/gradient_checkpointing"]) == (512, 0)
    seen = []
    for mib in (6, 2.5, 1.0, 0.7):
        told: list[str] = []
        gradient, metrics = gradient_within(monkeypatch, qwen2, mib * 2**20, told)
        assert distance(gradient, whole) < 1e-5
        assert metrics["learner/out_of_memory"] == 0
        rung = Rung(int(metrics["learner/microbatch_tokens"]), bool(metrics["learner/gradient_checkpointing"]))
        seen.append(rung)
        expected = ["GiB that a test leaves" in line for line in told]
        assert expected == ([True] if rung != (512, False) else [])
    order = ladder(LearnerSettings(), CPU, sharded=False)
    assert [order.index(rung) for rung in seen] == sorted(order.index(rung) for rung in seen)
    assert [rung.tokens for rung in seen] == [512, 128, 64, 64]
    assert seen[-1].recompute


@pytest.mark.parametrize(("mib", "looks", "given_back"), [(1000, 0, 0), (20, 1, 0), (6, 1, 1)])
def test_freed_blocks_are_given_back_only_where_what_is_freed_and_kept_would_not_fit(
    monkeypatch: pytest.MonkeyPatch, qwen2: Path, mib: int, looks: int, given_back: int
) -> None:
    called: list[str] = []

    def looked(*arguments: Any, **named: Any) -> Footprint:
        called.append("looked")
        return measure(*arguments, **named)

    monkeypatch.setattr(fitting, "measure", looked)
    monkeypatch.setattr(fitting, "return_freed_blocks", lambda: called.append("given back"))
    _, metrics = gradient_within(monkeypatch, qwen2, mib * 2**20)
    assert metrics["learner/microbatch_tokens"] == 512
    assert (called.count("looked"), called.count("given back")) == (looks, given_back)


def test_where_a_sequence_alone_does_not_fit_one_line_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, qwen2: Path
) -> None:
    with pytest.raises(OutOfMemoryError, match=r"a sequence of \d+ tokens needs .* a test leaves .*max_seq"):
        gradient_within(monkeypatch, qwen2, 1000.0)


def test_a_number_of_tokens_that_was_asked_for_is_tried_whatever_is_left(
    monkeypatch: pytest.MonkeyPatch, qwen2: Path
) -> None:
    _, metrics = gradient_within(monkeypatch, qwen2, 1000.0, microbatch_tokens=300)
    assert (metrics["learner/microbatch_tokens"], metrics["learner/gradient_checkpointing"]) == (300, 1)
    _, metrics = gradient_within(monkeypatch, qwen2, 1000.0, microbatch_tokens=300, gradient_checkpointing=False)
    assert (metrics["learner/microbatch_tokens"], metrics["learner/gradient_checkpointing"]) == (300, 0)


def runs_out(adapted: LoraPolicy, tokens: int) -> RemovableHandle:
    """Backward passes over more than `tokens` run out of memory, after half of the adapter has its gradient."""
    packed, seen = adapted.packed_hidden_states, [0]

    def forward(packing: Any) -> Tensor:
        seen.append(len(packing.tokens_U))
        return packed(packing)

    def fail(gradient: Tensor) -> None:
        if seen[-1] > tokens:
            raise RuntimeError(NO_MEMORY)

    adapted.packed_hidden_states = forward  # type: ignore[method-assign]
    handle: RemovableHandle = adapted.trainable[len(adapted.trainable) // 2].register_hook(fail)
    return handle


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_step_that_ran_out_of_memory_has_the_gradient_of_one_that_did_not(qwen2: Path, dropout: float) -> None:
    settings = replace(SETTINGS, microbatch_tokens=256, gradient_checkpointing=False)
    settings = replace(settings, lora=replace(settings.lora, dropout=dropout))
    told: list[str] = []
    short = learner(qwen2, settings, told)
    runs_out(short.policy, 70)
    torch.manual_seed(5)
    survived, metrics = step(short, group_batch())
    assert (metrics["learner/out_of_memory"], metrics["learner/microbatch_tokens"]) == (2, 64)
    assert [line.startswith("out of memory, ") for line in told] == [True, True]
    assert told[1].endswith("once more: micro-batches of 64 tokens")
    small_from_the_start = learner(qwen2, replace(settings, microbatch_tokens=64))
    torch.manual_seed(5)
    small, never = step(small_from_the_start, group_batch())
    assert all(map(torch.equal, survived, small))
    figures = [name for name in never if "peak" not in name and "out_of_memory" not in name]
    assert [metrics[name] for name in figures] == [never[name] for name in figures]
    if not dropout:
        torch.testing.assert_close(survived, step(learner(qwen2, settings), group_batch())[0], rtol=1e-4, atol=1e-5)
    _, after = step(short, replace(group_batch(), number=1))
    assert after["learner/microbatch_tokens"] == 64  # what did not fit is not tried again


def test_activations_are_computed_again_before_tokens_become_few(monkeypatch: pytest.MonkeyPatch, qwen2: Path) -> None:
    monkeypatch.setattr(fitting, "LARGEST", {"cpu": 128})
    monkeypatch.setattr(fitting, "USEFUL", {"cpu": 64})
    short = learner(qwen2, SETTINGS)
    plain = short.policy.packed_hidden_states

    def forward(packing: Any) -> Tensor:
        if not short.policy.model.get_base_model().is_gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(packing)

    short.policy.packed_hidden_states = forward  # type: ignore[method-assign]
    gradient, metrics = step(short, group_batch())
    assert (metrics["learner/microbatch_tokens"], metrics["learner/gradient_checkpointing"]) == (128, 1)
    assert distance(gradient, step(learner(qwen2, SETTINGS), group_batch())[0]) < 1e-5


def test_where_memory_runs_out_for_one_sequence_the_error_says_so_and_a_later_attempt_finds_nothing_left_over(
    qwen2: Path,
) -> None:
    settings = replace(SETTINGS, microbatch_tokens=64)
    short = learner(qwen2, settings)
    failing = runs_out(short.policy, 0)
    with pytest.raises(OutOfMemoryError, match=r"a sequence of \d+ tokens does not fit .* learner\.dtype=bfloat16"):
        short.step(group_batch())
    failing.remove()
    gradient, metrics = step(short, group_batch())
    assert distance(gradient, step(learner(qwen2, settings), group_batch())[0]) < 1e-5
    assert metrics["learner/out_of_memory"] >= 1


def test_other_errors_are_nobody_s_to_swallow(qwen2: Path) -> None:
    broken = learner(qwen2, SETTINGS)

    def forward(packing: Any) -> Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    broken.policy.packed_hidden_states = forward  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes"):
        broken.step(group_batch())


def test_optimisers_of_their_own_and_log_probabilities_survive_as_well(qwen2: Path) -> None:
    settings = replace(SETTINGS, microbatch_tokens=256, gradient_checkpointing=False)
    found = []
    for tokens in (10_000, 70):
        adapted = policy(qwen2)
        kl = SeparateLoss("kl", CrossEntropy(), settings.optimizer, adapted.trainable)
        losses: Losses = [PolicyGradient(settings), kl]
        each = Learner(adapted, losses, settings, steps=9, temperature=1.0)
        runs_out(adapted, tokens)
        found.append(step(each, group_batch())[0])
    assert len(found[0]) == 2 * len(adapted.trainable)
    assert distance(found[1], found[0]) < 1e-5
    expected = each.policy_logprobs(group_batch().sequences)
    plain, calls = adapted.packed_hidden_states, []

    def once(packing: Any) -> Tensor:
        calls.append(packing)
        if len(calls) == 2:
            raise MemoryError
        return plain(packing)

    adapted.packed_hidden_states = once  # type: ignore[method-assign]
    torch.testing.assert_close(
        torch.tensor(each.policy_logprobs(group_batch().sequences)[3]), torch.tensor(expected[3])
    )


def test_a_teacher_scores_in_halves_after_memory_ran_out(monkeypatch: pytest.MonkeyPatch, qwen2: Path) -> None:
    rows = group_batch().sequences
    ids, prefixes = [row.token_ids for row in rows], [row.prefix_length for row in rows]
    expected = TeacherModel(str(qwen2), SETTINGS).score(ids, prefixes)
    plain, most = TeacherModel.hidden, 100

    def hidden(self: TeacherModel, micro: Any) -> Tensor:
        if len(micro.packing.tokens_U) > most:
            raise RuntimeError(NO_MEMORY)
        return plain(self, micro)

    monkeypatch.setattr(TeacherModel, "hidden", hidden)
    for ours, theirs in zip(TeacherModel(str(qwen2), SETTINGS).score(ids, prefixes), expected, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))
    most = 0
    with pytest.raises(OutOfMemoryError, match=r"the teacher cannot score a sequence of \d+ tokens"):
        TeacherModel(str(qwen2), SETTINGS).score(ids, prefixes)


def test_settings_of_earlier_versions_and_flags_are_read_as_they_were() -> None:
    def read(**flags: Any) -> LearnerSettings:
        return load_config(
            TrainConfig, file=None, flags={f"learner.{name}": value for name, value in flags.items()}
        ).learner

    old = read(microbatch_tokens=16384, gradient_checkpointing=False)
    assert (old.microbatch_tokens, old.gradient_checkpointing) == (16384, False)
    flags = read(microbatch_tokens="512", gradient_checkpointing="true", memory_gib="6.5")
    assert (flags.microbatch_tokens, flags.gradient_checkpointing, flags.memory_gib) == (512, True, 6.5)
    auto = read(microbatch_tokens="auto", gradient_checkpointing="auto")
    assert (auto.microbatch_tokens, auto.gradient_checkpointing, auto.memory_gib) == ("auto", "auto", None)
    for name, value in (("microbatch_tokens", 0), ("memory_gib", 0), ("gradient_checkpointing", "sometimes")):
        with pytest.raises(ConfigError, match=f"learner.*{name}"):
            read(**{name: value})
