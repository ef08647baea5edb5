"""`treeopo train`: train the student on a tree store."""

from pathlib import Path
from typing import Annotated, Any

import typer

from treeopo_cli.options import ConfigFile, Engine, Seed, Set, TrustRemoteCode


def train(
    store: Annotated[Path | None, typer.Argument(help="The tree store to train on.", show_default="trees.zarr")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory of the new run.")] = Path("runs/latest"),
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run, under its own settings.", show_default=False)
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Hub name or directory.", show_default="the embedded student")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="A name that `treeopo methods` lists.", show_default="tree-opo")
    ] = None,
    advantage: Annotated[
        str | None,
        typer.Option(
            help="expectation, optimistic, pessimistic, flat, trace, loo, posterior, qp-hard, qp-convex or qp-soft.",
            show_default="expectation",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of the run.", show_default=False)] = None,
    asynchronous: Annotated[
        bool | None,
        typer.Option(
            "--async/--sync",
            help="Overlap rollouts and learning, one version stale, or take turns.",
            show_default="async",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="AdamW, falling along a cosine.", show_default="3e-5, embedded 3e-4"),
    ] = None,
    publish: Annotated[
        str | None,
        typer.Option(
            help="How new policies reach the engine: merged weights or an adapter a version.",
            show_default="by device",
        ),
    ] = None,
    retokenize: Annotated[
        bool | None,
        typer.Option("--retokenize", help="Encode the store's steps anew if the student's tokenizer is another."),
    ] = None,
    eval_problems: Annotated[
        str | None,
        typer.Option(help="Evaluate on this problem set beside training, and keep the best.", show_default=False),
    ] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between two evaluations.", show_default="20")] = None,
    engine: Engine = None,
    teacher_engine: Annotated[
        list[str] | None,
        typer.Option(
            help="URL of a vLLM server that scores for the teacher, where the method has one; repeat it for several.",
            show_default=False,
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
) -> None:
    """Train the student with LoRA: vLLM finishes prefixes from the store while the learner takes steps.

    Methods that learn from the store alone (sft, dvo, tree-opo-replay) start no engine.
    Stopped by Ctrl-C or SIGTERM it leaves a checkpoint; --resume RUN goes on from the newest.
    """
    from treeopo import runs
    from treeopo.config import TrainConfig, load_config
    from treeopo.run_directory import RunDirectory
    from treeopo_cli import render
    from treeopo_cli.options import settings

    if runs.follow_training():
        return
    if resume is not None:
        run = RunDirectory.open(resume)
    else:
        flags: dict[str, Any] = {
            "store": store,
            "output": output,
            "student": student,
            "method": method,
            "advantage.method": advantage,
            "steps": steps,
            "retokenize": retokenize,
            "evaluation.problems": eval_problems,
            "evaluation.every": eval_every,
            "engine.urls": engine or None,
            "teacher_urls": teacher_engine or None,
            "seed": seed,
            "learner.optimizer.learning_rate": learning_rate,
            "engine.publish": publish,
            "rollout.max_staleness": None if asynchronous is None else int(asynchronous),
            "engine.trust_remote_code": trust_remote_code,
            **settings(set_),
        }
        run = RunDirectory.create(load_config(TrainConfig, file=config, flags=flags))
    with render.TrainBar(run.config.steps) as bar:
        summary = runs.train(run, bar.notify, bar.advance)
    render.train_summary(run, summary)
