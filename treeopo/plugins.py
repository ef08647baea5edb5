"""Objects of a user's own, named `package.module:Name` wherever treeopo takes the name of one that ships."""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from treeopo.errors import ConfigError, described


def is_path(name: str) -> bool:
    """Whether `name` is written as `package.module:Name`."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in f"{module}.{attribute}".split("."))


def load_object(name: str, what: str) -> Any:
    """The object called `package.module:Name`; modules of the working directory are found too.

    `what` it is to be ("grader") is for the complaint.

    Raises:
        ConfigError: the name is not of that form, the module cannot be imported, or it has no such object.
    """
    if not is_path(name):
        raise ConfigError(f"{what} {name!r}: write it as package.module:Name")
    module, _, attribute = name.partition(":")
    directory = str(Path.cwd())
    if directory not in sys.path:  # as `python -m` has it, and the `treeopo` script has not
        sys.path.append(directory)
    try:
        found: Any = import_module(module)
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ConfigError(f"{what} {name}: importing {module} failed ({described(error)})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{what} {name}: module {module} has no {attribute}")
        found = getattr(found, part)
    return found


def check_name(name: str, registry: Mapping[str, str], what: str) -> None:
    """Whether `name` may stand for something, as far as that can be told without importing it.

    Raises:
        ConfigError: it is neither an entry of `registry` nor of the form `package.module:Name`.
    """
    if name not in registry and not is_path(name):
        raise ConfigError(
            f"unknown {what} {name!r}; use one of {', '.join(registry)}, or package.module:Name for one of your own"
        )


def find(name: str, registry: Mapping[str, str], what: str) -> Any:
    """What `name` means: an entry of `registry` (a short name to `package.module:Name`), or a path of that form.

    Raises:
        ConfigError: it is neither, or cannot be loaded.
    """
    check_name(name, registry, what)
    return load_object(registry.get(name, name), what)
