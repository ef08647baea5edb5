"""`treeopo mcts build`: search problems with a teacher and keep every prefix."""

from typing import Annotated

import typer

from treeopo_cli.options import (
    ConfigFile,
    Engine,
    Examples,
    Grader,
    Limit,
    Prompt,
    Seed,
    Set,
    Sets,
    Shots,
    TrustRemoteCode,
    lasting,
)

app = typer.Typer(no_args_is_help=True)

Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="STORE",
        help="Path or URL of the tree store to write or go on with.",
        show_default="trees.zarr",
    ),
    Sets("output"),
]
Teacher = Annotated[
    str | None, typer.Option(help="Hub name or directory.", show_default="the embedded teacher"), Sets("teacher")
]
Problems = Annotated[
    str | None,
    typer.Option(
        help="staged-arithmetic, gsm8k, gsm-symbolic, math or math500, as in gsm8k:train\\[:200], a file or "
        "directory of rows (JSON, CSV, Parquet), or module:function for rows of your own.",
        show_default="staged-arithmetic:easy:train",
    ),
    Sets("problems"),
]
Rollouts = Annotated[int | None, typer.Option(help="Traces per problem.", show_default="16"), Sets("search.rollouts")]
Depth = Annotated[int | None, typer.Option(help="Steps at most.", show_default="5"), Sets("search.depth")]
Branching = Annotated[
    int | None, typer.Option(help="Children of a node at most.", show_default="5"), Sets("search.branching")
]


@app.callback()
def mcts() -> None:
    """Monte Carlo tree search with the teacher."""


@app.command()
def build(
    context: typer.Context,
    output: Output = None,
    teacher: Teacher = None,
    problems: Problems = None,
    rollouts: Rollouts = None,
    depth: Depth = None,
    branching: Branching = None,
    prompt: Prompt = None,
    shots: Shots = None,
    examples: Examples = None,
    limit: Limit = None,
    grader: Grader = None,
    engine: Engine = None,
    trust_remote_code: TrustRemoteCode = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
) -> None:
    """Search problems with the teacher and store every partial solution it visited.

    Killed or stopped, the same command goes on after the last committed problem, with what the teacher has said.
    """
    from treeopo.config import BuildConfig, load_config
    from treeopo.jobs.build import build_store
    from treeopo_cli import bars, render
    from treeopo_cli.options import given_settings

    resolved = load_config(BuildConfig, file=config, flags=given_settings(build, context))
    lasting(resolved.output)
    try:
        with bars.BuildBar() as bar:
            report = build_store(resolved, bar.notify, bar.advance)
    except KeyboardInterrupt:
        render.say("stopped; finished problems are kept, and the same command goes on after them")
        raise typer.Exit(130) from None
    render.store_report(resolved.output, report)
