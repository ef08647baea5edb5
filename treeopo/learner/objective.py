"""The policy-gradient objective and its importance weights (SPEC §6), as pure functions of token tensors."""

from torch import Tensor

from treeopo.learner.settings import Aggregation, Correction


def importance_weights(current_C: Tensor, behaviour_C: Tensor, correction: Correction, cap: float) -> Tensor:
    """w_t = pi_theta(c_t) / pi_behaviour(c_t) per token, (C,), without gradient.

    none: 1. token-truncate: min(w_t, cap), the truncated importance sampling of Ionides (2008), per token as in
    Espeholt et al. (IMPALA, 2018): a bounded variance for a small bias.
    """
    ratio = (current_C.detach() - behaviour_C).exp()
    return ratio.clamp(max=cap) if correction == "token-truncate" else ratio.new_ones(ratio.shape)


def policy_gradient_loss(
    logprobs_C: Tensor, advantage_C: Tensor, weight_C: Tensor, length_C: Tensor, aggregation: Aggregation, total: float
) -> Tensor:
    """-(1/total) sum_t w_t a_t log pi(c_t); its gradient is the paper's g-hat (section 3.4) for w = 1.

    sum: total = K samples (the paper). sequence-mean: total = K, tokens divided by their sequence's length (GRPO).
    token-mean: total = all completion tokens of the batch (DAPO). The totals are the whole batch's, so micro-batches
    add up to exactly its gradient.
    """
    terms_C = weight_C * advantage_C * logprobs_C
    if aggregation == "sequence-mean":
        terms_C = terms_C / length_C
    return -terms_C.sum() / total
