"""Returns of per-token rewards: rewards-to-go, their leave-one-out baseline, and GAE.

Shapes: the C tokens of B completions lie one after the other; completion b ends before token `end_B[b]`. A completion
that has ended earns nothing more, whether it said so or ran out of room: returns are those of the run's finite horizon.
"""

import numpy as np
import numpy.typing as npt

from treeopo.tree.compile import kernel

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def rewards_to_go(reward_C: Floats, end_B: Ints) -> Floats:
    """(C,) sum of the rewards from each token to the end of its completion."""
    return _discounted_sums(reward_C, end_B, 1.0)


def leave_one_out(return_C: Floats, end_B: Ints) -> Floats:
    """(C,) mean return of the other B - 1 completions of the same prompt, position by position; B >= 2.

    At position t of completion i: sum over j != i of G_j,t / (B - 1), with G_j,t = 0 once j has ended, which is its
    reward-to-go there. It does not depend on completion i, so subtracting it leaves the gradient unbiased (Kool et al.
    2019; RLOO, Ahmadian et al. 2024). Those take one baseline a completion, which is far too large for late tokens:
    a reward-to-go shrinks with what is left to go.
    """
    lengths_B = np.diff(end_B, prepend=0)
    assert len(lengths_B) > 1, "a completion without others has nothing to be compared with"
    padded_BT = np.zeros((len(lengths_B), int(lengths_B.max(initial=0))))
    is_token_BT = np.arange(padded_BT.shape[1]) < lengths_B[:, None]
    padded_BT[is_token_BT] = return_C
    others_BT = (padded_BT.sum(axis=0) - padded_BT) / (len(lengths_B) - 1)
    others_C: Floats = others_BT[is_token_BT]
    return others_C


def generalized_advantages(reward_C: Floats, value_C: Floats, end_B: Ints, discount: float, decay: float) -> Floats:
    """(C,) GAE(gamma, lambda) of Schulman et al. (2016), eq. 16: A_t = sum_l (gamma lambda)^l delta_t+l with
    delta_t = r_t + gamma V_t+1 - V_t and V = 0 after a completion's last token.

    value_C[t] is of the state before token t. A + V are the lambda-returns, the critic's targets.
    """
    next_C = np.append(value_C[1:], 0.0)
    next_C[end_B - 1] = 0.0
    return _discounted_sums(reward_C + discount * next_C - value_C, end_B, discount * decay)


@kernel
def _discounted_sums(term_C: Floats, end_B: Ints, factor: float) -> Floats:
    """(C,) sum over l of factor^l term[t + l], up to the end of t's completion."""
    sum_C = np.empty(term_C.size)
    start = 0
    for end in end_B:
        running = 0.0
        for t in range(end - 1, start - 1, -1):
            running = term_C[t] + factor * running
            sum_C[t] = running
        start = end
    return sum_C
