"""`treeopo export`: trained weights in the form that others load."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from treeopo_cli.options import home_path


def export(
    run: Annotated[
        Path,
        typer.Argument(
            parser=home_path, metavar="RUN", help="A training run, or an adapter's directory.", show_default=False
        ),
    ],
    merge: Annotated[
        Path,
        typer.Option(
            "--merge",
            parser=home_path,
            metavar="DIRECTORY",
            help="Directory for base and adapter as one transformers model.",
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="The model under the adapter, where that names one that has moved.",
            show_default="adapter_config.json's",
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run Python code that the base's repository brings; a run tells."),
    ] = False,
) -> None:
    """Merge an adapter into its base: a plain model for transformers, vLLM and others.

    A run's adapter alone, in PEFT's format, is RUN/adapter.
    """
    from treeopo.jobs.export import export_merged
    from treeopo_cli import render

    export_merged(run, merge, base, trust_remote_code)
    render.say("merged model: [bold]{}[/]", merge)
    render.say("next: treeopo eval {}", quote(str(merge)))
