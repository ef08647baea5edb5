"""A process of a team that is not its first: it has the same learner and does with it what the first one does.

first process   LearnerThread.start ─▶ spec         step ─▶ method, argument        close ─▶ nothing more
this one        load the learner                    the same call on its share      leave
"""

from contextlib import suppress

import torch

from treeopo.errors import DivergedError, OutOfMemoryError
from treeopo.learner.distributed import Team
from treeopo.learner.spec import LearnerSpec
from treeopo.threads import share


def follow(team: Team) -> None:
    """Wait for the learner's spec, load it, and repeat each call of the first process until dismissed.

    Raises:
        ModelError: the student cannot be loaded here.
    """
    spec: LearnerSpec | None = team.receive()
    if spec is None:
        return
    torch.set_num_threads(share(spec.settings.threads))
    learner = spec.load(team)
    while (call := team.receive()) is not None:
        method, argument = call
        with suppress(DivergedError, OutOfMemoryError):  # the first process knows too, and writes it down
            method(learner, argument)
    team.shutdown()
