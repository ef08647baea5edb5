"""`treeopo methods`: what can be asked for with `train --method`."""


def methods() -> None:
    """List the training methods: what each learns from, what it needs, and where it is described."""
    from treeopo.methods import METHODS
    from treeopo_cli import render

    render.methods(METHODS.values())
