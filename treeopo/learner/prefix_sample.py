"""Which prefixes of a batch have their log-probability computed, so that the figure costs a step next to nothing.

It needs no other pass of the model, but the head, once for each step token. Where the head is a large part of the model
(2/7 of Qwen2.5-0.5B) that is 3 % of a step over all prefixes; over these it is `SHARE` at most.
"""

from collections.abc import Sequence
from dataclasses import replace

from treeopo.learner.policy import LoraPolicy
from treeopo.records import TrainSequence

SHARE = 0.01
"""Of a step's multiplications, those that go into the figure."""


def sample_prefixes(rows: Sequence[TrainSequence], number: int, body_per_head: float) -> Sequence[TrainSequence]:
    """The rows of batch `number`, in their order; those whose prefixes are left out have no `question_length`.

    A step token costs 2 multiplications a weight of the head; a completion token 4 a weight of body and head, forward
    and backward. Prefixes are taken at equal distances, from another place in each batch, so that each of a group's
    comes in turn; one at least.
    """
    stepped = [index for index, row in enumerate(rows) if row.step_tokens]
    budget = 2 * SHARE * (1 + body_per_head) * sum(row.completion_length for row in rows)
    needed = sum(row.step_tokens for row in rows)
    if needed <= budget:
        return rows
    kept = max(1, int(len(stepped) * budget / needed))
    chosen = {stepped[(index * len(stepped) // kept + number) % len(stepped)] for index in range(kept)}
    return [row if index in chosen else replace(row, question_length=None) for index, row in enumerate(rows)]


def body_per_head(policy: LoraPolicy) -> float:
    """Weights that a token is multiplied by before the head, for one of the head."""
    decoder = policy.model.get_base_model().get_decoder()
    embedded = decoder.get_input_embeddings().weight.numel()
    body = sum(parameter.numel() for parameter in decoder.parameters()) - embedded
    return float(body / policy.head.get_parameter("weight").numel())
