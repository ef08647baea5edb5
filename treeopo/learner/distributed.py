"""Several processes, one learner: `torchrun --nproc-per-node N -m treeopo_cli.main train ...`.

    rank 0    the run: engine, batches, checkpoints, metrics     send(batch) ─▶ its share ─┐
    rank 1..  follow the learner and nothing else             receive() = batch ─▶ its share ─┤
                                                                     sum of the gradients ◀──┘

Each rank holds the whole policy and takes its share of a batch's sequences; losses are normalised by the whole batch,
so the sum of the ranks' gradients is the single process's. Adapter gradients alone travel: a few megabytes a step.
Every rank then takes the same optimiser step, so the policies stay equal without being sent.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch._C._distributed_c10d import PrefixStore, TCPStore

from treeopo.learner.packing import shared_lengths
from treeopo.records import TrainSequence

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
_PATIENCE = timedelta(days=1)  # of a follower while the leader's engine completes a batch


@dataclass(slots=True)
class Team:
    """The processes that learn together; `Team()` is one process alone, for which every method does nothing.

    `meeting` is (host, port, whether rank 0 opens the port). The processes meet at the first message.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    meeting: tuple[str, int, bool] = ("localhost", 0, True)

    @classmethod
    def from_environment(cls) -> "Team":
        """As torchrun or `accelerate launch` started this process. Takes their variables out of the environment: an
        inference engine started from here must not think that it belongs to the team.
        """
        values = {name: os.environ.pop(name, "") for name in _VARIABLES}
        if int(values["WORLD_SIZE"] or 1) == 1:
            return cls()
        agent = values["TORCHELASTIC_USE_AGENT_STORE"] == "True"
        meeting = (values["MASTER_ADDR"], int(values["MASTER_PORT"]), not agent)
        return cls(int(values["RANK"]), int(values["WORLD_SIZE"]), int(values["LOCAL_RANK"] or 0), meeting)

    @property
    def device(self) -> torch.device:
        """This process's accelerator, or the CPU."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def send(self, message: object) -> None:
        """From rank 0 to every other; they `receive` it."""
        if self.size > 1:
            self._exchange([message])

    def receive(self) -> Any:
        """What rank 0 sends next; waits for it."""
        return self._exchange([None])

    def dismiss(self) -> None:
        """Rank 0 tells the others that there is no more to do, and leaves."""
        if self.size > 1:
            self.send(None)
            self.shutdown()

    def shutdown(self) -> None:
        """Leave the team."""
        distributed.destroy_process_group()

    def share(self, sequences: Sequence[TrainSequence]) -> Sequence[TrainSequence]:
        """This rank's part: neighbours in lexicographic order, so that shared prefixes stay together, and about as many
        distinct tokens as any other's.
        """
        if self.size == 1 or not sequences:
            return sequences
        order = sorted(sequences, key=lambda row: np.asarray(row.token_ids).tolist())
        common = shared_lengths([row.token_ids for row in order])
        ends = np.cumsum([len(row.token_ids) - shared for row, shared in zip(order, common, strict=True)])
        owner = np.minimum((ends - 1) * self.size // ends[-1], self.size - 1)
        return [row for row, rank in zip(order, owner, strict=True) if rank == self.rank]

    def all_reduce_max(self, count: int) -> int:
        """The largest of every rank's counts."""
        counts = torch.tensor(count)
        if self.size > 1:
            distributed.all_reduce(counts, distributed.ReduceOp.MAX)
        return int(counts)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum of every rank's `values`, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def add_gradients(self, gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        """The sum of every rank's gradients in one message; None where no rank has one. `like` gives their shapes."""
        if self.size == 1:
            return list(gradients)
        filled = [torch.zeros_like(b) if a is None else a for a, b in zip(gradients, like, strict=True)]
        present = filled[0].new_tensor([float(gradient is not None) for gradient in gradients])
        flat = self.all_reduce_sum(torch.cat([present, *(gradient.flatten() for gradient in filled)]))
        parts = torch.split(flat[len(present) :], [gradient.numel() for gradient in filled])
        return [
            part.view_as(shape) if count else None
            for count, part, shape in zip(flat[: len(present)].tolist(), parts, like, strict=True)
        ]

    def _exchange(self, message: list[Any]) -> Any:
        if not distributed.is_initialized():
            self._meet()
        distributed.broadcast_object_list(message, src=0, device=torch.device("cpu"))
        return message[0]

    def _meet(self) -> None:
        host, port, opens = self.meeting
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        store = TCPStore(host, port, self.size, is_master=opens and self.rank == 0, timeout=_PATIENCE)
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        distributed.init_process_group(
            backend,
            store=PrefixStore("treeopo", store),
            rank=self.rank,
            world_size=self.size,
            timeout=_PATIENCE,
        )
