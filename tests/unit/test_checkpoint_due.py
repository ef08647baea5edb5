"""A checkpoint is due by steps, and by time where steps are slow and checkpoints cheap."""

from treeopo.run.due import WORTH, CheckpointDue


def taken_at(step_seconds: float, checkpoint_seconds: float, every: int, steps: int) -> list[int]:
    """The steps after which a run takes a checkpoint."""
    now = 0.0
    due = CheckpointDue(every, lambda: now)
    taken = []
    for step in range(1, steps + 1):
        now += step_seconds
        if due.at(step):
            taken.append(step)
            with due.taken():
                now += checkpoint_seconds
    return taken


def test_quick_steps_have_one_every_so_many() -> None:
    assert taken_at(1.0, 0.1, every=10, steps=30) == [10, 20, 30]


def test_slow_steps_have_one_before_a_kill_costs_more_than_half_a_minute_and_a_step() -> None:
    assert taken_at(20.0, 0.2, every=10, steps=12) == [2, 4, 6, 8, 10, 12]


def test_a_checkpoint_that_takes_long_is_taken_for_a_small_share_of_the_time() -> None:
    taken = taken_at(20.0, 8.0, every=1000, steps=200)
    assert len(taken) * 8.0 <= 200 * 20.0 / WORTH + 8.0
    assert len(taken) >= 2


def test_steps_decide_even_where_a_checkpoint_takes_long() -> None:
    assert taken_at(1.0, 60.0, every=5, steps=10) == [5, 10]
