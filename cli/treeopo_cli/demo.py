"""`treeopo demo`: the main job on the embedded default, ending in a table."""

from pathlib import Path
from typing import Annotated

import typer

from treeopo_cli.options import home_path


def demo(
    output: Annotated[
        Path,
        typer.Option("-o", "--output", parser=home_path, metavar="DIRECTORY", help="Where everything is kept."),
    ] = Path("demo"),
) -> None:
    """Make the embedded models, search trees, train on them asynchronously, and compare the student with itself before.

    A second call reuses what is there.
    """
    from treeopo.jobs.demo import demo as run_demo
    from treeopo_cli import bars, render

    render.demo(run_demo(output, bars.DemoBars()))
