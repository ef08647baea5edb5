"""`treeopo demo`: the main job on the embedded default, ending in a table."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Where everything is kept.")] = Path("demo"),
) -> None:
    """Make the embedded models, search trees, train on them asynchronously, and compare the student with itself before.

    A second call reuses what is there.
    """
    from treeopo.jobs.demo import demo as run_demo
    from treeopo_cli import render

    render.demo(run_demo(output, render.DemoBars()))
