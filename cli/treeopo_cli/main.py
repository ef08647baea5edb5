"""`treeopo`: commands parse, call `treeopo.jobs`, and render; nothing heavy is imported before one runs."""

import sys

import typer

from treeopo_cli import demo, evaluate, export, inspect_tree, mcts, methods, settings, store, train

app = typer.Typer(
    name="treeopo",
    help="Train reasoning models on Monte Carlo search trees (Tree-OPO).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(mcts.app, name="mcts", help="Monte Carlo tree search with the teacher.")
app.command("train")(train.train)
app.command("methods")(methods.methods)
app.command("settings")(settings.settings)
app.command("eval")(evaluate.evaluate)
app.command("export")(export.export)
app.command("inspect-tree")(inspect_tree.inspect_tree)
app.add_typer(store.app, name="store", help="Look after tree stores: info, verify, export, import, merge.")
app.command("demo")(demo.demo)


def main() -> None:
    """Entry point: what a user can mend becomes one line and status 2, a failed engine, disk or run one and 1."""
    try:
        app()
    except _expected() as error:
        from treeopo.errors import DivergedError, EngineError, GraderError, OutOfMemoryError

        reason = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError):
            reason = f"this command needs {error.name}; install treeopo[cpu] or treeopo[cuda]"
        print(f"treeopo: {reason}", file=sys.stderr)
        sys.exit(1 if isinstance(error, EngineError | GraderError | DivergedError | OutOfMemoryError | OSError) else 2)


def _expected() -> tuple[type[BaseException], ...]:
    """Evaluated only when something was raised, so that `--help` imports neither."""
    from treeopo_storage.errors import StoreError

    from treeopo.errors import TreeopoError

    return TreeopoError, StoreError, OSError, ModuleNotFoundError


if __name__ == "__main__":
    main()
