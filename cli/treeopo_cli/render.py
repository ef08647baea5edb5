"""What a person sees: tables and trees; progress bars are in bars.py."""

from collections.abc import Iterable, Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from pathlib import Path

    from treeopo_storage import ProblemTree, StoreMeta

    from treeopo.evaluation.comparison import Evaluation
    from treeopo.evaluation.intervals import Interval
    from treeopo.inspect.tokens import CanonicalPrefixes
    from treeopo.jobs.demo import Demo
    from treeopo.jobs.train import TrainSummary
    from treeopo.methods import Method
    from treeopo.run.directory import RunDirectory
    from treeopo.search.report import TreeReport
    from treeopo.settings_reference import Setting

console = Console(markup=False, emoji=False)
"""Text is shown as it is: paths, names and steps hold brackets of their own. What has a style is made by `styled`."""


def styled(template: str, *values: object) -> Text:
    """A template in rich's markup; each {} stands for a value, shown as it is."""
    return Text.from_markup(template.format(*(escape(str(value)) for value in values)), emoji=False)


def say(template: str, *values: object) -> None:
    """A line of `styled`, whatever the width: a command or a path in it can be copied."""
    console.print(styled(template, *values), soft_wrap=True)


def store_report(path: "Path | str", report: "TreeReport") -> None:
    """A store at a glance: sizes, then solve rate by depth (deeper should be easier)."""
    table = Table(title=f"Tree store {path}", title_justify="left", show_header=False)
    table.add_row("problems", f"{report.problems:,}")
    table.add_row("  solved by some trace", f"{report.solved:,}")
    table.add_row("  with right and wrong traces", f"{report.with_both_outcomes:,}")
    table.add_row("prefixes", f"{report.prefixes:,}")
    table.add_row("  of different text", f"{report.unique_prefixes:,}")
    table.add_row("traces", f"{report.traces:,}")
    table.add_row("step tokens", f"{report.tokens:,}")
    console.print(table)
    depths = Table(title="By depth", title_justify="left")
    for column in ("depth", "prefixes", "solved traces"):
        depths.add_column(column, justify="right")
    for depth, (count, rate) in enumerate(zip(report.prefixes_by_depth, report.solve_rate_by_depth, strict=True)):
        depths.add_row(str(depth), f"{count:,}", "-" if rate != rate else f"{rate:.0%}")
    console.print(depths)
    children = Table(title="By number of children, unfinished prefixes", title_justify="left")
    for column in ("children", "prefixes"):
        children.add_column(column, justify="right")
    for degree, count in enumerate(report.prefixes_by_children):
        children.add_row(str(degree), f"{count:,}")
    console.print(children)
    if report.with_both_outcomes == 0:
        say(
            "[yellow]No prefix is informative:[/] no problem has both right and wrong traces, "
            "so the teacher shows where it succeeds or fails nowhere. Use a stronger teacher or easier problems."
        )


def methods(rows: "Iterable[Method]") -> None:
    table = Table(show_lines=True)
    for column in ("method", "what it is", "starts", "needs", "loss", "source"):
        table.add_column(column, no_wrap=column in ("method", "starts"))
    for row in rows:
        needs, losses = ", ".join(sorted(row.needs)) or "-", " + ".join(row.losses)
        table.add_row(row.name, row.summary, str(row.start or "-"), needs, losses, row.source)
    console.print(table)


def settings(found: "Mapping[str, Sequence[Setting]]") -> None:
    """A table a command."""
    for command, rows in found.items():
        if not rows:
            continue
        title = f"treeopo {'mcts build' if command == 'build' else command}"
        table = Table(title=title, title_justify="left", show_lines=True)
        table.add_column("setting, type, default", overflow="fold", max_width=44)
        table.add_column("what it is")
        for row in rows:
            table.add_row(Text.assemble((row.name, "bold"), f"\n{row.kind}\n{row.defaults}"), Text(row.text))
        console.print(table)


def train_summary(run: "RunDirectory", summary: "TrainSummary") -> None:
    engine = (
        f", of the engine {summary.engine_peak_mib:,.0f} MiB; staleness at most {summary.max_staleness}"
        if summary.engine_peak_mib
        else ""
    )
    say(
        "{} of {} steps, {} with a gradient; {}; peak memory of the learner {} MiB{}",
        summary.steps,
        run.config.steps,
        summary.informative_steps,
        summary.data,
        f"{summary.learner_peak_mib:,.0f}",
        engine,
    )
    if summary.informative_steps == 0:
        say("[yellow]No prefix was informative:[/] every group's rewards were equal, so nothing was learned.")
    if summary.best:
        best = summary.best
        low, high = best["eval/pass_at_1_low"], best["eval/pass_at_1_high"]
        figures = f"pass@1 {best['eval/pass_at_1']:.3f} ({low:.3f} to {high:.3f})"
        say("best: {} at step {}: {}", figures, f"{best['version']:.0f}", run.best)
    if summary.complete:
        say("adapter: [bold]{}[/]  (PEFT format)", summary.adapter)
        say("next: treeopo eval {} --against base", quote(str(run.path)))
    else:
        say("stopped with a checkpoint; go on with: treeopo train --resume {}", quote(str(run.path)))


def _interval(interval: "Interval") -> str:
    return f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def evaluation(result: "Evaluation") -> None:
    """A column a model: greedy pass@1, then what its samples say; with two models their difference by problem.

    Fractional rewards have means in the place of shares of right answers: the mean reward, and the best of k.
    """
    say("[bold]{}[/]: {} problems, 95% intervals", result.problems, result.count)
    table = Table()
    table.add_column("")
    for score in result.scores:
        table.add_column(score.label, justify="right")
    greedy, best_of = ("greedy pass@1", "pass@") if result.is_binary else ("greedy mean reward", "best of ")
    table.add_row(greedy, *(_interval(score.greedy) for score in result.scores))
    for k in result.scores[0].pass_at:
        table.add_row(f"{best_of}{k}", *(_interval(score.pass_at[k]) for score in result.scores))
    for k in result.scores[0].majority_at:
        table.add_row(f"maj@{k}", *(_interval(score.majority_at[k]) for score in result.scores))
    table.add_row("cut short", *(str(score.truncated) for score in result.scores))
    if any(score.grader_timeouts or score.grader_restarts or score.grader_errors for score in result.scores):
        table.add_row("grading timed out", *(str(score.grader_timeouts) for score in result.scores))
        table.add_row("graders replaced", *(str(score.grader_restarts) for score in result.scores))
        table.add_row("grader failed", *(str(score.grader_errors) for score in result.scores))
    if any(score.grader_unreadable_golds for score in result.scores):
        table.add_row("golds unreadable", *(str(score.grader_unreadable_golds) for score in result.scores))
    console.print(table)
    if result.difference:
        difference = result.difference
        p_value = "-" if difference.p_value is None else f"{difference.p_value:.2g}"
        say("greedy difference by problem: {}, McNemar p = {}", _signed(difference.greedy), p_value)
        if difference.sampled:
            say("sampled difference by problem: {}", _signed(difference.sampled))


def _signed(interval: "Interval") -> str:
    return f"{interval.estimate:+.3f} (95% {interval.low:+.3f} to {interval.high:+.3f})"


def store_overview(
    path: "Path | str", meta: "StoreMeta", report: "TreeReport", canonical: "CanonicalPrefixes | None"
) -> None:
    store_report(path, report)
    if canonical is not None:
        say("{}", canonical.told)
    say("teacher: {}", meta.teacher)
    say("settings: {}", dict(meta.search))
    say("next: treeopo inspect-tree {} --problem 0", quote(str(path)))


def problem_tree(tree: "ProblemTree") -> None:
    """Each line a step: node number, the step, visits and mean value; a leaf shows whether it is right."""
    say("[bold]{}[/]  {}\ngold answer: {}", tree.id, tree.question, tree.answer)
    branches: list[Tree] = []
    for node in range(tree.node_count):
        text = "root" if node == 0 else " ".join(tree.texts[node].split())
        visits = int(tree.visits[node])
        value = f"{tree.value_sum[node] / visits:.2f}" if visits else "-"
        line = styled("[dim]{}[/] {}  [cyan]n={} v={}[/]", node, text, visits, value)
        if tree.terminal[node]:
            line.append_text(Text("  ")).append_text(_verdict(float(tree.reward[node])))
        branches.append(Tree(line) if node == 0 else branches[tree.parent[node]].add(line))
    console.print(branches[0])


def _verdict(reward: float) -> Text:
    if 0 < reward < 1:
        return Text(f"reward {reward:.2g}", "yellow")
    return Text("right", "green") if reward > 0 else Text("wrong", "red")


def prefix(tree: "ProblemTree", node: int) -> None:
    """One prefix as the student sees it, then its steps with the teacher's log-probabilities."""
    say("[bold]{}[/], node {}: {} tokens", tree.id, node, len(tree.prefix_tokens(node)))
    table = Table(title="Steps from the root", title_justify="left")
    for column in ("node", "visits", "value", "tokens", "teacher log-probability", "text"):
        table.add_column(column, justify="left" if column == "text" else "right")
    for step in tree.path(node):
        begin, end = int(tree.token_offsets[step]), int(tree.token_offsets[step + 1])
        logprob = float(tree.teacher_logprobs[begin:end].sum())
        visits = int(tree.visits[step])
        table.add_row(
            str(step),
            str(visits),
            f"{tree.value_sum[step] / visits:.2f}" if visits else "-",
            str(end - begin),
            "-" if logprob != logprob else f"{logprob:.3f}",
            tree.texts[step].strip(),
        )
    console.print(table)


def demo(result: "Demo") -> None:
    """The figures of the whole job, where its parts lie, and what to type next."""
    evaluation(result.evaluation)
    table = Table(show_header=False)
    table.add_row("trees built", f"{result.report.problems:,}")
    table.add_row("prefixes", f"{result.report.prefixes:,}")
    table.add_row("optimiser steps", f"{result.training.steps}")
    table.add_row("staleness seen, at most", f"{result.training.max_staleness}")
    for stage, seconds in result.seconds.items():
        table.add_row(f"seconds: {stage}", f"{seconds:,.0f}")
    table.add_row("tree store", str(result.store))
    table.add_row("trained adapter (PEFT)", str(result.training.adapter))
    table.add_row("figures as JSON", str(result.directory / "summary.json"))
    console.print(table)
    store, run = quote(str(result.store)), quote(str(result.run))
    say("Go on with:")
    say("  treeopo inspect-tree {} --problem 0", store)
    say("  treeopo mcts build -o more.zarr --limit 500")
    say("  treeopo train {} --method grpo -o runs/grpo", store)
    say("  treeopo eval runs/grpo --against {}", run)
