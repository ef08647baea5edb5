"""`treeopo inspect-tree`: look into a tree store."""

from typing import Annotated

import typer

from treeopo_cli.store import OwnTokenizer


def inspect_tree(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Path or URL of a tree store.")] = "trees.zarr",
    problem: Annotated[
        str | None, typer.Option(help="Show this problem's tree: its number or its id.", show_default=False)
    ] = None,
    node: Annotated[
        int | None,
        typer.Option(help="With --problem: show the prefix that ends at this node, in full.", show_default=False),
    ] = None,
    tokenizer: OwnTokenizer = None,
) -> None:
    """Overview of a store, one problem as a tree with visits and values, or one prefix in full."""
    from treeopo_storage import open_store

    from treeopo.inspect import find
    from treeopo.inspect.tokens import look
    from treeopo_cli import render

    if problem is None:
        meta, report = find.overview(store)
        render.store_overview(store, meta, report, look(open_store(store), tokenizer))
        return
    tree = find.find_problem(store, problem)
    if node is None:
        render.problem_tree(tree)
    else:
        render.prefix(tree, find.check_node(tree, node))
