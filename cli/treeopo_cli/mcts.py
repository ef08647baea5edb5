"""`treeopo mcts build`: search problems with a teacher and keep every prefix."""

from pathlib import Path
from typing import Annotated

import typer

from treeopo_cli.options import ConfigFile, Engine, Examples, Limit, Prompt, Seed, Set, Shots, TrustRemoteCode

app = typer.Typer(no_args_is_help=True)


@app.callback()
def mcts() -> None:
    """Monte Carlo tree search with the teacher."""


@app.command()
def build(
    output: Annotated[Path, typer.Option("-o", "--output", help="The tree store to write or go on with.")] = Path(
        "trees.zarr"
    ),
    teacher: Annotated[
        str | None, typer.Option(help="Hub name or directory.", show_default="the embedded teacher")
    ] = None,
    problems: Annotated[
        str | None,
        typer.Option(
            help="staged-arithmetic, gsm8k, gsm-symbolic, math or math500, as in gsm8k:train\\[:200], or a JSON Lines "
            "or Parquet file.",
            show_default="staged-arithmetic:easy:train",
        ),
    ] = None,
    rollouts: Annotated[int | None, typer.Option(help="Traces per problem.", show_default="16")] = None,
    depth: Annotated[int | None, typer.Option(help="Steps at most.", show_default="5")] = None,
    branching: Annotated[int | None, typer.Option(help="Children of a node at most.", show_default="5")] = None,
    prompt: Prompt = None,
    shots: Shots = None,
    examples: Examples = None,
    limit: Limit = None,
    engine: Engine = None,
    trust_remote_code: TrustRemoteCode = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
) -> None:
    """Search problems with the teacher and store every partial solution it visited.

    Killed or stopped, the same command goes on after the last committed problem.
    """
    from treeopo import runs
    from treeopo.config import BuildConfig, load_config
    from treeopo_cli import render
    from treeopo_cli.options import settings

    flags = {
        "output": output,
        "teacher": teacher,
        "problems": problems,
        "prompt.style": prompt,
        "prompt.shots": shots,
        "prompt.examples": examples,
        "limit": limit,
        "engine.urls": engine or None,
        "seed": seed,
        "search.rollouts": rollouts,
        "search.depth": depth,
        "search.branching": branching,
        "engine.trust_remote_code": trust_remote_code,
        **settings(set_),
    }
    resolved = load_config(BuildConfig, file=config, flags=flags)
    try:
        with render.BuildBar() as bar:
            report = runs.build_store(resolved, bar.notify, bar.advance)
    except KeyboardInterrupt:
        render.console.print("stopped; finished problems are kept, and the same command goes on after them")
        raise typer.Exit(130) from None
    render.store_report(output, report)
