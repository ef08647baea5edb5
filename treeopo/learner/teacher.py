"""The teacher in the learner's process: log-probabilities of tokens, and hidden states for distributions."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from treeopo.errors import OutOfMemoryError
from treeopo.learner.fitting import forward_tokens
from treeopo.learner.logprobs import token_logprobs
from treeopo.learner.microbatch import MicroBatch, micro_batches
from treeopo.learner.packed_attention import can_pack, pack_attention, packed_hidden_states, padded_hidden_states
from treeopo.learner.policy import load_base
from treeopo.learner.room import is_out_of_memory, release
from treeopo.learner.settings import LearnerSettings
from treeopo.records import FloatArray, IntArray, TrainSequence
from treeopo.threads import share

_ROW = "row"


class TeacherModel:
    """A frozen causal language model, in the dtype and on the device of the policy's base."""

    def __init__(self, name: str, settings: LearnerSettings, trust_remote_code: bool = False) -> None:
        """Load it. Raises `ModelError` if it cannot be loaded."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = settings.dtype or ("bfloat16" if self.device.type == "cuda" else "float32")
        base = load_base(name, getattr(torch, dtype), trust_remote_code)
        self._model = base.to(self.device).eval().requires_grad_(False)
        self._packs = can_pack(self._model)
        if self._packs:
            pack_attention(self._model)
        self._budget = forward_tokens(settings, self.device)

    @property
    def head(self) -> nn.Module:
        """The map from hidden states to logits (H to V)."""
        head: nn.Module = self._model.get_output_embeddings()
        return head

    @torch.no_grad()
    def hidden(self, micro: MicroBatch) -> Tensor:
        """(C, H) final hidden states that predict the micro-batch's completion tokens."""
        states = packed_hidden_states if self._packs else padded_hidden_states
        return embedding(micro.position_C, states(self._model.get_decoder(), micro.packing))

    def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        """See `ScoreTokens`. When memory runs out it is begun again in halves.

        Raises:
            OutOfMemoryError: a sequence alone does not fit.
        """
        while True:
            try:
                return self._score(token_ids, prefix_lengths)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            release(self.device)
            longest = max(map(len, token_ids))
            if self._budget <= 1:
                raise OutOfMemoryError(
                    f"out of memory: the teacher cannot score a sequence of {longest} tokens; lower "
                    "rollout.max_sequence_tokens, set learner.dtype=bfloat16, or have a server score (teacher_urls)"
                )
            self._budget = min(self._budget, sum(map(len, token_ids))) // 2

    @torch.no_grad()
    def _score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        rows = [_row(index, *row) for index, row in enumerate(zip(token_ids, prefix_lengths, strict=True))]
        scores = [np.empty(row.completion_length, np.float32) for row in rows]
        scored = [row for row in rows if row.completion_length]
        for micro in micro_batches(scored, self._budget, self.device):
            logprobs_C = token_logprobs(self.hidden(micro), self.head, micro.target_C, 1.0).float().cpu().numpy()
            row_C = micro.extras_C[_ROW].cpu().numpy()
            for index in np.unique(row_C):
                scores[int(index)][:] = logprobs_C[row_C == index]
        return scores


def _row(index: int, token_ids: IntArray, prefix_length: int) -> TrainSequence:
    unknown = np.zeros(len(token_ids) - prefix_length, np.float32)
    return TrainSequence(
        token_ids, prefix_length, unknown, unknown, unknown.astype(np.int32), {_ROW: np.full_like(unknown, index)}
    )


class TeacherThread:
    """`ScoreTokens` by a `TeacherModel` in a thread of its own, beside the learner's."""

    def __init__(self, thread: ThreadPoolExecutor, teacher: TeacherModel) -> None:
        self._thread = thread
        self._teacher = teacher

    @classmethod
    async def start(cls, name: str, settings: LearnerSettings, trust_remote_code: bool = False) -> "TeacherThread":
        """Load the teacher `name`. Raises `ModelError` if it cannot be loaded."""
        threads = share(settings.threads)
        thread = ThreadPoolExecutor(1, "teacher", initializer=torch.set_num_threads, initargs=(threads,))
        load = partial(TeacherModel, name, settings, trust_remote_code)
        return cls(thread, await asyncio.get_running_loop().run_in_executor(thread, load))

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._teacher.score, token_ids, prefix_lengths)

    async def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
