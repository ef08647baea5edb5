"""`treeopo export`: trained weights in the form that others load."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A training run.", show_default=False)],
    merge: Annotated[Path, typer.Option("--merge", help="Directory for base and adapter as one transformers model.")],
) -> None:
    """Merge a run's adapter into its base: a plain model for transformers, vLLM and others.

    The adapter alone, in PEFT's format, is RUN/adapter.
    """
    from treeopo.jobs.export import export_merged
    from treeopo.run.directory import RunDirectory
    from treeopo_cli import render

    export_merged(RunDirectory.open(run), merge)
    render.console.print(f"merged model: [bold]{merge}[/]\nnext: treeopo eval {merge}")
