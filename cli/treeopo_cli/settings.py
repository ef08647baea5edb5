"""`treeopo settings`: every setting by name, with its type, default and meaning."""

from typing import Annotated

import typer


def settings(
    command: Annotated[
        str | None, typer.Argument(help="train, build or eval.", show_default="all of them", metavar="COMMAND")
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            help="Only settings whose names begin with this, or hold it.", show_default=False, metavar="NAME"
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/settings.md.")] = False,
) -> None:
    """List what --set and configuration files take: names, types, defaults and what they mean.

    treeopo settings train learner.optimizer; treeopo settings staleness
    """
    from treeopo import settings_reference as reference
    from treeopo_cli import render

    if markdown:
        typer.echo(reference.markdown(), nl=False)
        return
    if name is None and command not in reference.CONFIGS:
        command, name = None, command
    if command is not None and command not in reference.CONFIGS:
        raise typer.BadParameter(f"{command} takes no settings; use {', '.join(reference.CONFIGS)}")
    found = reference.find_settings(name or "", [command] if command else reference.CONFIGS)
    render.settings(found)
