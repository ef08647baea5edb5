"""Progress bars: what is being waited for, then how far the work is and about how long it still takes."""

import os
import sys
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.spinner import Spinner
from rich.text import Text

from treeopo import stages
from treeopo_cli import render
from treeopo_cli.render import styled

if TYPE_CHECKING:
    from treeopo.evaluation.accuracy import EvalProgress
    from treeopo.search.build import BuildProgress

PLAIN_SECONDS = 30.0
"""Between two lines in a log."""

ESTIMATE_SECONDS = 300.0
"""Time left is estimated from the speed of so many seconds past."""


class Bar:
    """A progress bar that first shows what is being waited for, and since when.

    Not a terminal: a plain line a notice, and where it stands every `PLAIN_SECONDS`, for whoever follows a log.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._console = render.console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[clock]}", style="cyan"),
            console=self._console,
        )
        self._spinner = Spinner("dots")
        self._task: TaskID | None = None
        self._status = self._details = ""
        self._total = 0.0
        self._began = monotonic()
        self._pace = Pace()
        self._stage, self._stage_detail = "getting ready", ""
        self._stage_began = self._began
        self._stack = ExitStack()
        self._over = Event()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if (own := _own_console()) is not None:
                stack.callback(own.file.close)
                self._console = own
            if not self._console.is_terminal:
                stack.callback(self._console.print)
            stack.enter_context(Live(get_renderable=self._picture, console=self._console))
            stack.enter_context(stages.heard_by(self))
            if not self._console.is_terminal:
                log = Thread(target=self._tell_now_and_then, daemon=True)
                log.start()
                stack.callback(log.join)
                stack.callback(self._over.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage = ""
        self._stack.close()

    def notify(self, notice: str) -> None:
        self._say(styled("[dim]{}[/]", notice))

    def enter(self, stage: str) -> None:
        """Show what is being waited for, until the work itself is shown to go on."""
        self._stage, self._stage_detail, self._stage_began = stage, "", monotonic()
        if not self._console.is_terminal:
            self.notify(stage)

    def detail(self, text: str) -> None:
        self._stage_detail = text

    def tell(self) -> None:
        """A line of where it stands."""
        if line := self._waiting() or self._working():
            self._say(Text(line))

    def _show(self, description: str, count: str, details: str, done: float, total: float) -> None:
        """done, total: of whatever measures the work best; count: what a person counts, in the bar's unit."""
        self._stage = ""
        self._total, self._details = total, details
        self._pace.add(monotonic(), done)
        if self._task is None:
            self._task = self._progress.add_task(description, count="", clock="")
        self._progress.update(self._task, completed=done, total=total, count=f"{count} {self._unit}")
        self._status = f"{description} {count} {self._unit}"

    def _picture(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._task is not None:
            self._progress.update(self._task, clock=self._clock())
            parts += [self._progress, Text(f"  {self._details}" if self._details else "", style="dim")]
        if waiting := self._waiting():
            self._spinner.update(text=Text(waiting, style="dim"))
            parts.append(self._spinner)
        return Group(*parts)

    def _working(self) -> str:
        details = f"; {self._details}" if self._details else ""
        return f"{self._status}, {self._clock()}{details}" if self._status else ""

    def _clock(self) -> str:
        now = monotonic()
        left = self._pace.left(now, self._total)
        return f"{_clock(now - self._began)}{'' if left is None else f', about {_clock(left)} left'}"

    def _waiting(self) -> str:
        if not self._stage:
            return ""
        detail = f": {self._stage_detail}" if self._stage_detail else ""
        return f"{self._stage}{detail}, {_clock(monotonic() - self._stage_began)}"

    def _tell_now_and_then(self) -> None:
        while not self._over.wait(PLAIN_SECONDS):
            self.tell()

    def _say(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)


class Pace:
    """How fast the work went lately, and so how long the rest takes."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()  # when, and how much was done then

    def add(self, now: float, done: float) -> None:
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - ESTIMATE_SECONDS:
            self._seen.popleft()

    def restart(self) -> None:
        """What was done so far says nothing about what comes."""
        self._seen.clear()

    def left(self, now: float, total: float) -> float | None:
        """Seconds, None where nothing was done yet, or nothing is left to do."""
        (began, first), (_, done) = self._seen[0], self._seen[-1]
        return (total - done) * (now - began) / (done - first) if first < done < total else None


class BuildBar(Bar):
    def __init__(self) -> None:
        super().__init__("problems")

    def advance(self, progress: "BuildProgress", remaining: int, seconds: float) -> None:
        """The bar follows the traces: all problems advance together, and for long none is finished."""
        rate = progress.tokens / seconds if seconds else 0.0
        parts = [f"{progress.traces:,} of {progress.expected:,} rollouts"]
        if progress.problems:
            parts += [f"{progress.solved_share:.0%} of problems solved", f"{progress.nodes:,} prefixes"]
        elif progress.traces:
            parts.append(f"{progress.solved_traces / progress.traces:.0%} solved")
        parts += [f"{progress.requests:,} completions", f"{progress.tokens:,} tokens", f"{rate:,.0f} tokens/s"]
        if not progress.requests:
            self._pace.restart()  # only what is known from before has been gone through
        count = f"{progress.problems}/{remaining}"
        self._show("searching", count, ", ".join(parts), progress.traces, progress.expected)


class TrainBar(Bar):
    def __init__(self, steps: int) -> None:
        super().__init__("steps")
        self._steps = steps
        self._totals: Counter[str] = Counter()

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Rates are over the steps so far: one step's rollouts overlap with the step before."""
        self._totals.update(metrics)
        totals = self._totals
        seconds = totals["pipeline/seconds_step"]
        details = f"learner {totals['learner/tokens'] / seconds:,.0f} tokens/s, loss {metrics['learner/loss']:.4f}"
        if "rollout/reward" in metrics:
            details += f", reward {metrics['rollout/reward']:.2f}"
        if "rollout/reward_root" in metrics:
            details += f" (at the root {metrics['rollout/reward_root']:.2f})"
        if "engine/occupancy" in metrics:
            details += (
                f" after {metrics['spent/completions_so_far']:,.0f} completions"
                f", staleness {metrics['rollout/staleness_mean']:.2f}"
                f", rollout {totals['rollout/tokens'] / seconds:,.0f} tokens/s"
                f", learner waited {totals['pipeline/seconds_waiting'] / seconds:.0%}, "
                f"engine starved {totals['engine/seconds_starved'] / seconds:.0%}"
            )
        if self._task is None:  # the first step began when it began to be waited for
            self._pace.add(self._stage_began, step - 1)
        self._show("training", f"{step}/{self._steps}", details, step, self._steps)


class EvalBar(Bar):
    def __init__(self) -> None:
        super().__init__("completions")

    def advance(self, progress: "EvalProgress") -> None:
        right = f"{progress.reward / progress.new:.0%} right, " if progress.new else ""
        rate = progress.tokens / progress.seconds if progress.seconds else 0.0
        details = f"{right}{progress.tokens:,} tokens, {rate:,.0f} tokens/s"
        self._show("solving", f"{progress.done:,}/{progress.total:,}", details, progress.done, progress.total)


class DemoBars:
    """The bars of `treeopo.jobs.demo.Bars`, each announced by its stage."""

    def build(self) -> BuildBar:
        render.console.rule(styled("[bold]1. trees[/]: the teacher searches"))
        return BuildBar()

    def train(self, steps: int) -> TrainBar:
        render.console.rule(styled("[bold]2. training[/]: the student finishes prefixes and learns"))
        return TrainBar(steps)

    def evaluate(self) -> EvalBar:
        render.console.rule(styled("[bold]3. evaluation[/]: held-out problems, before and after"))
        return EvalBar()


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


def _own_console() -> Console | None:
    """A console on a copy of standard output, if the screen is standard output: an engine that starts takes the
    original for its log, and nothing that is shown meanwhile would be seen.
    """
    if render.console.file is not sys.__stdout__ or sys.__stdout__ is None:
        return None
    own = os.fdopen(os.dup(sys.__stdout__.fileno()), "w", encoding=sys.__stdout__.encoding, errors="backslashreplace")
    return Console(file=own, markup=False, emoji=False)
