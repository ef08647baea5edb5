"""`treeopo eval`: pass@1 of a model, an adapter or a run."""

from pathlib import Path
from typing import Annotated

import typer

from treeopo_cli.options import ConfigFile, Limit, Seed, Set


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Hub name, directory, adapter or run.  [default: the embedded student]", show_default=False
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="A second model, compared on the same problems.", show_default=False)
    ] = None,
    problems: Annotated[
        str | None,
        typer.Option(
            help="As for mcts build.  [default: staged-arithmetic:easy:test]",
            show_default=False,
        ),
    ] = None,
    limit: Limit = None,
    samples: Annotated[
        int | None, typer.Option(help="Completions a problem at temperature 1, beside the greedy one.  [default: 0]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Directory for scores.json and every completion.")
    ] = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
) -> None:
    """Solve problems greedily, and by sampling if asked, and print pass@1 with its 95% interval."""
    from treeopo import runs
    from treeopo.config import EvalConfig, load_config
    from treeopo_cli import render
    from treeopo_cli.options import settings

    flags = {
        "model": model,
        "against": against,
        "problems": problems,
        "limit": limit,
        "samples": samples,
        "output": output,
        "seed": seed,
        **settings(set_),
    }
    resolved = load_config(EvalConfig, file=config, flags=flags)
    with render.EvalBar() as bar:
        result = runs.evaluate(resolved, bar.notify, bar.advance)
    render.evaluation(result)
