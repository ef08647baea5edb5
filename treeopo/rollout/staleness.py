"""How old the tokens of a batch are, and where they grew old: in flight, or in the queue before the learner."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from treeopo.records import Sample


def staleness_metrics(number: int, samples: Sequence[Sample], max_staleness: int) -> dict[str, float]:
    """Staleness over the T tokens of batch `number`, which version `number` learns from, as means and histograms.

        number - versions[t]  =  served_version - versions[t]  +  number - served_version
        staleness             =  in flight                     +  in queue

    In flight, publications overtook a request that was still being answered; in queue, a finished sample waited for
    the rest of its batch, or for the learner. `staleness_share_k` is the share of tokens exactly k versions old, k up
    to `max_staleness`, and likewise for each part.
    """
    lengths = [len(sample.completion.versions) for sample in samples]
    sampled_T = np.concatenate([sample.completion.versions for sample in samples])
    served_T = np.repeat([sample.served_version for sample in samples], lengths)
    staleness_T = number - sampled_T
    in_flight_T, in_queue_T = served_T - sampled_T, number - served_T
    return {
        "staleness_mean": float(staleness_T.mean()),
        "staleness_max": float(staleness_T.max()),
        "staleness_in_flight_mean": float(in_flight_T.mean()),
        "staleness_in_queue_mean": float(in_queue_T.mean()),
        **_shares("staleness", staleness_T, max_staleness),
        **_shares("staleness_in_flight", in_flight_T, max_staleness),
        **_shares("staleness_in_queue", in_queue_T, max_staleness),
    }


def _shares(name: str, values_T: npt.NDArray[np.int64], largest: int) -> dict[str, float]:
    counts = np.bincount(values_T, minlength=largest + 1)
    return {f"{name}_share_{age}": float(count / len(values_T)) for age, count in enumerate(counts)}
