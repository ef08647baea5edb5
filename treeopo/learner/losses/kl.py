"""The KL divergence between policy and teacher as a loss (Tree-OPO App. B, beta_distill).

reverse = KL(pi || pi_T), forward = KL(pi_T || pi), per position, summed over the positions that the behaviour policy
visited; the visits themselves are data (GKD, Agarwal et al. 2024, eq. 3). Names: docs/methods.md, tree-opo-kl.
"""

from typing import assert_never

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from treeopo.learner.logprobs import chunk_rows
from treeopo.learner.losses import Forward
from treeopo.learner.losses.corrections import LOG_LIMIT
from treeopo.learner.losses.policy_gradient import aggregate, total
from treeopo.learner.microbatch import MicroBatch
from treeopo.learner.settings import Direction, KlSettings, LearnerSettings
from treeopo.learner.teacher import TeacherModel
from treeopo.records import TokenColumn, TrainBatch, TrainSequence


class KlToTeacher:
    """beta KL(policy, teacher), aggregated over tokens as the policy gradient is.

    sampled: from the teacher's log-probability of each token, in the column TEACHER. full: over the vocabulary, with
    `teacher` in the learner; exact at each position, but the teacher's forward pass and weights are the learner's too.
    """

    def __init__(
        self, settings: KlSettings, learner: LearnerSettings, temperature: float, teacher: TeacherModel | None
    ) -> None:
        assert (teacher is not None) == (settings.estimate == "full")
        self._settings = settings
        self._learner = learner
        self._temperature = temperature
        self._teacher = teacher
        self._total = 1.0
        self._kl = self._tokens = 0.0

    def begin(self, batch: TrainBatch) -> bool:
        self._total = total(batch, self._learner)
        self._kl = self._tokens = 0.0
        return True

    def wants(self, sequence: TrainSequence) -> bool:
        return True

    def loss(self, micro: MicroBatch, forward: Forward) -> Tensor:
        match self._settings.estimate:
            case "sampled":
                surrogate_C, kl_C = self._sampled(micro, forward)
            case "full":
                surrogate_C, kl_C = self._full(micro, forward)
            case _ as unknown:
                assert_never(unknown)
        self._kl += kl_C.sum().item()
        self._tokens += len(kl_C)
        return -self._settings.beta * aggregate(surrogate_C, micro.length_C, self._learner.aggregation, self._total)

    def metrics(self) -> dict[str, float]:
        """kl: its estimate per completion token, in nats, in the direction that is descended."""
        return {"learner/kl": self._kl / self._tokens} if self._tokens else {}

    def _sampled(self, micro: MicroBatch, forward: Forward) -> tuple[Tensor, Tensor]:
        behaviour_C, teacher_C = micro.behaviour_C, micro.extras_C[TokenColumn.TEACHER]
        direction, cap = self._settings.direction, self._settings.weight_cap
        coefficient_C = score_coefficients(direction, forward.current_C, behaviour_C, teacher_C, cap)
        match direction:
            case "reverse":
                kl_C = coefficient_C
            case "forward":
                log_ratio_C = (forward.current_C - teacher_C).detach()
                kl_C = -_ratio(teacher_C - behaviour_C, cap) * log_ratio_C
            case _:
                assert_never(direction)
        return coefficient_C * forward.logprobs_C, kl_C

    def _full(self, micro: MicroBatch, forward: Forward) -> tuple[Tensor, Tensor]:
        assert self._teacher is not None
        kl_C = full_kl(
            self._settings.direction,
            forward.hidden_CH,
            forward.head,
            self._teacher.hidden(micro),
            self._teacher.head,
            self._temperature,
        )
        return kl_C, kl_C.detach()


def score_coefficients(
    direction: Direction, current_C: Tensor, behaviour_C: Tensor, teacher_C: Tensor, cap: float
) -> Tensor:
    """What multiplies grad log pi(c_t), c_t from the behaviour policy mu, so that its mean is the KL's gradient, (C,).

    reverse: (pi/mu) (log pi - log pi_T), a policy gradient with the log-ratio as its cost.
    forward: pi/mu - pi_T/mu. The second is the gradient of -E_T[log pi]; the first has mean zero and makes the
    coefficient vanish token by token where policy and teacher agree.

    mu = pi gives the on-policy estimates, mu = pi_T those from stored teacher tokens. Differentiating an estimate of
    the value would not do: k1's gradient has mean zero, and k3's is forward's above, whatever it is called (Tang and
    Munos 2025). Both weights are cut off at `cap`: a bounded variance for a bias.
    """
    weight_C = _ratio(current_C - behaviour_C, cap)
    match direction:
        case "reverse":
            return weight_C * (current_C - teacher_C).detach()
        case "forward":
            return weight_C - _ratio(teacher_C - behaviour_C, cap)
        case _:
            assert_never(direction)


def _ratio(log_ratio_C: Tensor, cap: float) -> Tensor:
    return log_ratio_C.detach().clamp(max=LOG_LIMIT).exp().clamp(max=cap)


def full_kl(
    direction: Direction,
    hidden_CH: Tensor,
    head: nn.Module,
    teacher_CH: Tensor,
    teacher_head: nn.Module,
    temperature: float,
) -> Tensor:
    """KL between the next-token distributions at each of C positions, (C,) in nats: the policy's at `temperature`, the
    teacher's at 1. Chunk by chunk, recomputed in the backward pass.
    """
    # Two distributions, and what autograd keeps of them: four times what the log-probabilities of a row need.
    rows = max(1, chunk_rows(len(head.get_parameter("weight")), hidden_CH.device) // 4)
    chunks = [
        checkpoint(_chunk_kl, direction, hidden, head, teacher, teacher_head, temperature, use_reentrant=False)
        for hidden, teacher in zip(torch.split(hidden_CH, rows), torch.split(teacher_CH, rows), strict=True)
    ]
    return torch.cat(chunks)


def _chunk_kl(
    direction: Direction,
    hidden_CH: Tensor,
    head: nn.Module,
    teacher_CH: Tensor,
    teacher_head: nn.Module,
    temperature: float,
) -> Tensor:
    """Models of one family may pad their heads to different sizes: rows beyond the smaller one are no tokens."""
    logits_CV, teacher_CV = head(hidden_CH), teacher_head(teacher_CH)
    tokens = min(logits_CV.shape[-1], teacher_CV.shape[-1])
    precision = torch.promote_types(logits_CV.dtype, torch.float32)
    policy_CV = torch.log_softmax(logits_CV[:, :tokens].to(precision) / temperature, dim=-1)
    target_CV = torch.log_softmax(teacher_CV[:, :tokens].to(precision), dim=-1)
    match direction:
        case "reverse":
            return (policy_CV.exp() * (policy_CV - target_CV)).sum(-1)
        case "forward":
            return (target_CV.exp() * (target_CV - policy_CV)).sum(-1)
        case _:
            assert_never(direction)
