"""How many CPU threads each side of a command gets, where nobody has said: none beyond the cores that are there for it.

A side that waits at its barriers for a thread without a core runs at a fraction of its speed
(benchmarks/threads.py), so sides that run at once share the cores, and one alone takes all of them
(benchmarks/threads_alone.py).
"""

import os
from typing import Literal

Threads = int | Literal["auto"]

TINY = 8_000_000
"""Parameters below the embedding and the head, up to which an engine gains nothing by a second thread, which the search
or the grader beside it could use.
"""


def cores() -> int:
    """Cores that this process may use: OMP_NUM_THREADS if that is set, as torchrun does, or those it may run on, shared
    with the other processes of a torchrun.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(said) if said.isdigit() and int(said) else max(1, there // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def share(asked: Threads, sides: int = 1) -> int:
    """Threads of one of `sides` that run at once: what was asked for, or its share of the cores."""
    return max(1, cores() // sides) if asked == "auto" else asked


def engine_share(asked: Threads, model: str, sides: int = 1) -> int:
    """`share` of an engine that serves `model`; a tiny one gets one thread."""
    return 1 if asked == "auto" and (_parameters(model) or TINY) < TINY else share(asked, sides)


def _parameters(model: str) -> int | None:
    """Of a transformer's layers, by its configuration, to a few tens of percent; None where that does not tell."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model).get_text_config()
        return 12 * int(config.num_hidden_layers) * int(config.hidden_size) ** 2
    except (OSError, ValueError, AttributeError, TypeError):
        return None
