"""`treeopo train`: train the student on a tree store."""

from pathlib import Path
from typing import Annotated

import typer

from treeopo_cli.options import ConfigFile, Engine, Grader, Seed, Set, Sets, TrustRemoteCode, home_path

Store = Annotated[
    str | None,
    typer.Argument(metavar="STORE", help="Path or URL of the tree store to train on.", show_default="trees.zarr"),
    Sets("store"),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Directory of the new run.", show_default="runs/latest"),
    Sets("output"),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        parser=home_path,
        metavar="RUN",
        help="Go on with this run, under its own settings; --steps may be more.",
        show_default=False,
    ),
]
Student = Annotated[
    str | None, typer.Option(help="Hub name or directory.", show_default="the embedded student"), Sets("student")
]
Method = Annotated[
    str | None, typer.Option(help="A name that `treeopo methods` lists.", show_default="tree-opo"), Sets("method")
]
Advantage = Annotated[
    str | None,
    typer.Option(
        help="How rewards become advantages; `treeopo settings train advantage.method` lists them.",
        show_default="expectation",
    ),
    Sets("advantage.method"),
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps of the run.", show_default=False), Sets("steps")]
Asynchronous = Annotated[
    bool | None,
    typer.Option(
        "--async/--sync",
        help="Overlap rollouts and learning, one version stale, or take turns.",
        show_default="async",
    ),
    Sets("rollout.max_staleness", int),
]
LearningRate = Annotated[
    float | None,
    typer.Option(help="AdamW, falling along a cosine.", show_default="3e-5, embedded 3e-4"),
    Sets("learner.optimizer.learning_rate"),
]
Publish = Annotated[
    str | None,
    typer.Option(
        help="How new policies reach the engine: merged weights or an adapter a version.",
        show_default="by device",
    ),
    Sets("engine.publish"),
]
Retokenize = Annotated[
    bool | None,
    typer.Option("--retokenize", help="Encode the store's steps anew if the student's tokenizer is another."),
    Sets("retokenize"),
]
EvalProblems = Annotated[
    str | None,
    typer.Option(help="Evaluate on this problem set beside training, and keep the best.", show_default=False),
    Sets("evaluation.problems"),
]
EvalEvery = Annotated[
    int | None, typer.Option(help="Steps between two evaluations.", show_default="20"), Sets("evaluation.every")
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        help="Also send the metrics to wandb, trackio, mlflow or package.module:Name; repeat it for several.",
        show_default=False,
    ),
    Sets("trackers"),
]
KeepRollouts = Annotated[
    str | None,
    typer.Option(
        metavar="N|all|none",
        help="Keep the rollouts of the N newest steps, of all or of none, as Parquet in RUN/rollouts.",
        show_default="100",
    ),
    Sets("rollouts_kept"),
]
TeacherEngine = Annotated[
    list[str] | None,
    typer.Option(
        help="URL of a vLLM server that scores for the teacher, where the method has one; repeat it for several.",
        show_default=False,
    ),
    Sets("teacher_urls"),
]


def train(
    context: typer.Context,
    store: Store = None,
    output: Output = None,
    resume: Resume = None,
    student: Student = None,
    method: Method = None,
    advantage: Advantage = None,
    steps: Steps = None,
    asynchronous: Asynchronous = None,
    learning_rate: LearningRate = None,
    publish: Publish = None,
    retokenize: Retokenize = None,
    eval_problems: EvalProblems = None,
    eval_every: EvalEvery = None,
    track: Track = None,
    keep_rollouts: KeepRollouts = None,
    grader: Grader = None,
    engine: Engine = None,
    teacher_engine: TeacherEngine = None,
    trust_remote_code: TrustRemoteCode = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
) -> None:
    """Train the student with LoRA: vLLM finishes prefixes from the store while the learner takes steps.

    Methods that learn from the store alone (sft, dvo, tree-opo-replay) start no engine.
    Stopped by Ctrl-C, SIGTERM or a closed terminal it leaves a checkpoint; --resume RUN goes on from the newest.
    """
    from treeopo.config import TrainConfig, load_config
    from treeopo.jobs.train import follow_training
    from treeopo.jobs.train import train as run_training
    from treeopo.run.directory import RunDirectory
    from treeopo.run.resume import resume_run
    from treeopo_cli import bars, render
    from treeopo_cli.options import flag_names, given_settings

    if follow_training():
        return
    flags = given_settings(train, context)
    if resume is not None:
        run = resume_run(resume, file=config, flags=flags, labels=flag_names(train, context))
    else:
        run = RunDirectory.create(load_config(TrainConfig, file=config, flags=flags))
    with bars.TrainBar(run.config.steps) as bar:
        summary = run_training(run, bar.notify, bar.advance)
    render.train_summary(run, summary)
