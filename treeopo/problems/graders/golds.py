"""Golds that their grader cannot read: found before anything starts, told in one line, worth 0 afterwards."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from treeopo.errors import GraderError, shortened
from treeopo.problems.graders.base import load_grader
from treeopo.problems.settings import GRADERS, GradingSettings

if TYPE_CHECKING:
    from treeopo.ports import Notify
    from treeopo.problems.graders.pool import GradingPool


async def unreadable_golds(
    name: str, settings: GradingSettings, golds: Iterable[str], notify: "Notify"
) -> dict[str, int]:
    """How often each of `golds` occurs that the grader called `name` cannot read, by its method `reads`; empty where it
    has none.

    Raises:
        GraderError: no worker can be started, or `reads` of a user's grader failed.
    """
    from treeopo.problems.graders.pool import GradingPool  # asyncio: not before it is needed
    from treeopo.tasks import gather_or_cancel

    grader = load_grader(name)
    if not callable(getattr(grader, "reads", None)):
        return {}
    golds = list(golds)
    quick = getattr(grader, "quick_reads", None) if name in GRADERS else None
    verdicts = {gold: quick(gold) if quick else None for gold in golds}
    slow = [gold for gold, verdict in verdicts.items() if verdict is None]
    if slow:
        pool = GradingPool(name, settings)
        try:
            verdicts |= dict(zip(slow, await gather_or_cancel(_asked(pool, name, gold) for gold in slow), strict=True))
        finally:
            await pool.close()
    unreadable = dict(Counter(gold for gold in golds if not verdicts[gold]))
    if unreadable:
        share, first = f"{sum(unreadable.values()):,} of {len(golds):,}", shortened(repr(next(iter(unreadable))), 60)
        notify(
            f"{share} golds cannot be read by the grader {name}, the first is {first}; every answer to them is worth "
            "0: mend them, or choose another --grader"
        )
    return unreadable


async def _asked(pool: "GradingPool", name: str, gold: str) -> bool:
    from treeopo.problems.graders.pool import Outcome

    reply = await pool.reads(gold)
    if reply.outcome is not Outcome.DONE and name not in GRADERS:
        why = reply.error or "no reply by the deadline, or its process died"
        raise GraderError(f"grader {name}: reads failed on {shortened(repr(gold), 60)}: {why}")
    return bool(reply.value == 1.0)
