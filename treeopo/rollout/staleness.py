"""Staleness of a batch's tokens in policy versions, split into in flight (sampling) and in queue (before learning)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from treeopo.records import Rollout


def staleness_metrics(number: int, rollouts: Sequence[Rollout], max_staleness: int) -> dict[str, float]:
    """Staleness over the T tokens of batch `number`, which version `number` learns from, as means and histograms.

        number - versions[t]  =  served_version - versions[t]  +  number - served_version
        staleness             =  in flight                     +  in queue

    In flight, publications overtook a request that was still being answered; in queue, a finished rollout waited for
    the rest of its batch, or for the learner. `staleness_share_k` is the share of tokens exactly k versions old, k up
    to `max_staleness`, and likewise for each part.
    """
    lengths = [len(rollout.completion.versions) for rollout in rollouts]
    sampled_T = np.concatenate([rollout.completion.versions for rollout in rollouts])
    served_T = np.repeat([rollout.served_version for rollout in rollouts], lengths)
    staleness_T = number - sampled_T
    in_flight_T, in_queue_T = served_T - sampled_T, number - served_T
    return {
        "rollout/staleness_mean": float(staleness_T.mean()),
        "rollout/staleness_max": float(staleness_T.max()),
        "rollout/staleness_in_flight_mean": float(in_flight_T.mean()),
        "rollout/staleness_in_queue_mean": float(in_queue_T.mean()),
        **_shares("rollout/staleness", staleness_T, max_staleness),
        **_shares("rollout/staleness_in_flight", in_flight_T, max_staleness),
        **_shares("rollout/staleness_in_queue", in_queue_T, max_staleness),
    }


def _shares(name: str, values_T: npt.NDArray[np.int64], largest: int) -> dict[str, float]:
    counts = np.bincount(values_T, minlength=largest + 1)
    return {f"{name}_share_{age}": float(count / len(values_T)) for age, count in enumerate(counts)}
