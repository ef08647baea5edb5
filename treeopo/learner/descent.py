"""AdamW with a gradient buffer of its own, so that several optimisers can share parameters."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from transformers import get_cosine_schedule_with_warmup

from treeopo.learner.distributed import Team
from treeopo.learner.settings import OptimizerSettings


class Descent(AdamW):
    """One optimiser with its schedule and the gradient gathered for it.

    `parameter.grad` belongs to it only inside `gradients()`; between two calls of `backward` other optimisers may
    gather theirs. With several, all gradients of a step are taken at the same weights; the updates follow in order.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], settings: OptimizerSettings, steps: int) -> None:
        self._parameters = list(parameters)
        super().__init__(self._parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.schedule = get_cosine_schedule_with_warmup(self, settings.warmup_steps, steps)
        self._gradients: list[Tensor | None] = [None] * len(self._parameters)
        self._max_norm = settings.max_grad_norm

    @property
    def learning_rate(self) -> float:
        return float(self.param_groups[0]["lr"])

    @property
    def bytes_to_come(self) -> int:
        """Of the gradient, and of the moments that AdamW takes at its first step."""
        weights = sum(parameter.nbytes for parameter in self._parameters)
        return weights * (1 if self.state else 3)

    def backward(self, loss: Tensor, *, keep_graph: bool = False) -> None:
        """Add the gradient of `loss`; keep_graph: another optimiser's `backward` follows on the same forward pass."""
        with self.gradients():
            loss.backward(inputs=self._parameters, retain_graph=keep_graph)  # type: ignore[no-untyped-call]

    def add_over(self, team: Team) -> None:
        """Make the gradient the sum of every rank's."""
        self._gradients = team.add_gradients(self._gradients, self._parameters)

    def clip(self) -> float:
        """Scale the gradient down to the largest norm allowed; the norm it had."""
        with self.gradients():
            return float(clip_grad_norm_(self._parameters, self._max_norm))

    def update(self) -> None:
        """Step, and the schedule with it. Without any gradient only the schedule moves."""
        with self.gradients():
            self.step()
        self.schedule.step()

    def forget(self) -> None:
        """Drop the gradient."""
        self._gradients = [None] * len(self._parameters)

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Its own gradient stands in `parameter.grad`; whatever stood there returns afterwards."""
        before = [parameter.grad for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        try:
            yield
        finally:
            self._gradients = [parameter.grad for parameter in self._parameters]
            for parameter, gradient in zip(self._parameters, before, strict=True):
                parameter.grad = gradient

    def checkpoint(self) -> dict[str, Any]:
        """Moments and schedule, for `restore`."""
        return {"optimizer": self.state_dict(), "schedule": self.schedule.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `checkpoint` returned, at the rate that this schedule, perhaps a longer one, has there."""
        self.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for group, rate, factor in zip(
            self.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group["lr"] = rate * factor(self.schedule.last_epoch)
