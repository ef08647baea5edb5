"""Supervised fine-tuning on (prompt, completion) pairs: cross-entropy of the completion tokens alone.

Serves the embedded default (trained from scratch) and any causal language model of transformers, PEFT-wrapped or not.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from treeopo.errors import ConfigError

IGNORED = -100  # the label that cross-entropy skips
_WINDOW = 16  # batches that are sorted by length together: little padding, yet batches stay mixed


@dataclass(frozen=True, slots=True)
class Example:
    """One supervised pair; end the completion with the end-of-text token if the model is to stop there.

    Raises `ConfigError` if either side is empty: a first token has no context to be predicted from.
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]

    def __post_init__(self) -> None:
        if not self.prompt_ids or not self.completion_ids:
            raise ConfigError("supervised example: prompt and completion need at least one token each")

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class SupervisedSettings:
    """AdamW, linear warm-up over `warmup` of the steps, then a cosine to zero. Raises `ConfigError` if impossible."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    bf16_autocast: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ConfigError(
                f"supervised training of {self.steps} steps of {self.batch_size}: both must be at least 1"
            )
        if not (self.learning_rate > 0 and self.clip_norm > 0 and 0 <= self.warmup <= 1):
            raise ConfigError("supervised training: learning rate and clip norm must be positive, warm-up in [0, 1]")


@dataclass(frozen=True, slots=True)
class SupervisedBatch:
    """ids_B_T padded on the right; labels_B_T are the ids where a completion stands and `IGNORED` elsewhere.

    Padding needs no attention mask: it stands after every real token, where causal attention never looks.
    """

    ids_B_T: torch.Tensor
    labels_B_T: torch.Tensor


def collate(examples: Sequence[Example], pad_token_id: int) -> SupervisedBatch:
    """Pad B examples to the longest of them."""
    shape = (len(examples), max(map(len, examples)))
    ids_B_T = torch.full(shape, pad_token_id)
    labels_B_T = torch.full(shape, IGNORED)
    for row, example in enumerate(examples):
        start, end = len(example.prompt_ids), len(example)
        ids_B_T[row, :end] = torch.tensor([*example.prompt_ids, *example.completion_ids])
        labels_B_T[row, start:end] = ids_B_T[row, start:end]
    return SupervisedBatch(ids_B_T, labels_B_T)


def length_buckets(examples: Sequence[Example], batch_size: int, seed: int) -> Iterator[list[Example]]:
    """Endless batches: epochs in shuffled order, each window of it sorted by length, its batches shuffled again.

    An epoch that does not divide by `batch_size` ends in a smaller batch. Raises `ConfigError` for no examples.
    """
    if not examples:
        raise ConfigError("supervised training: no examples; give at least one (prompt, completion) pair")
    rng = random.Random(seed)
    while True:
        order = rng.sample(range(len(examples)), len(examples))
        for start in range(0, len(order), _WINDOW * batch_size):
            window = sorted(order[start : start + _WINDOW * batch_size], key=lambda index: len(examples[index]))
            batches = [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
            rng.shuffle(batches)
            yield from ([examples[index] for index in batch] for batch in batches)


def supervised_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: SupervisedBatch, settings: SupervisedSettings
) -> float:
    """One clipped optimizer step; returns the mean negative log-likelihood per completion token before it (nats).

    Logits are computed from the shortest prompt's end on: the rest of them carries no loss.
    """
    device = next(model.parameters()).device
    ids_B_T, labels_B_T = batch.ids_B_T.to(device), batch.labels_B_T.to(device)
    scored = int((labels_B_T != IGNORED).any(dim=0).nonzero()[0]) - 1  # first position whose next token carries loss
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.bf16_autocast):
        logits_B_T_V = model(input_ids=ids_B_T, use_cache=False, logits_to_keep=ids_B_T.shape[1] - scored).logits
    loss = torch.nn.functional.cross_entropy(
        logits_B_T_V[:, :-1].flatten(0, 1).float(), labels_B_T[:, scored + 1 :].flatten(), ignore_index=IGNORED
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(trainable(model), settings.clip_norm)
    optimizer.step()
    return loss.item()


def train_supervised(
    model: torch.nn.Module,
    examples: Sequence[Example],
    settings: SupervisedSettings,
    pad_token_id: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train every parameter of `model` that requires a gradient; returns the mean loss of the last tenth of the steps.

    The same model, examples and settings give the same weights (on one device with one thread count); the global
    random state is left as it was. `on_step(step, loss)` is called after each step, step counting from 1.
    """
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_cosine(step, settings))
    losses: list[float] = []
    was_training = model.training
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        buckets = length_buckets(examples, settings.batch_size, settings.seed)
        for step, chosen in zip(range(1, settings.steps + 1), buckets, strict=False):
            losses.append(supervised_step(model, optimizer, collate(chosen, pad_token_id), settings))
            schedule.step()
            on_step(step, losses[-1])
    model.train(was_training)
    tail = losses[-max(1, settings.steps // 10) :]
    return sum(tail) / len(tail)


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that require a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _warmup_cosine(step: int, settings: SupervisedSettings) -> float:
    """The factor on the learning rate at `step` (from 0): linear up to 1, then half a cosine down to 0."""
    warmup = settings.warmup * settings.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, settings.steps - warmup)))
