"""Options that several commands share, and how options become settings.

An option that gives a setting says which beside its help: `Annotated[int | None, Option(help=...), Sets("steps")]`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


@dataclass(frozen=True, slots=True)
class Sets:
    """The setting, by its dotted name, that an option gives; `read` makes its value of the option's."""

    name: str
    read: Callable[[Any], Any] = lambda value: value


def home_path(text: str | Path) -> Path:
    """A local path with `~` expanded, which shells leave as it is after a `=` and in quotes.

    Raises:
        ConfigError: nobody's home is called so.
    """
    from treeopo.places import Kind, at_home

    return Path(at_home(Kind.PATH, text))


def home_name(text: str) -> str:
    """A hub name, or a directory with `~` expanded."""
    from treeopo.places import Kind, at_home

    return str(at_home(Kind.MODEL, text))


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        parser=home_path,
        metavar="FILE",
        help="TOML file with any setting; flags win over it.",
        show_default=False,
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.", show_default="0"), Sets("seed")]
TrustRemoteCode = Annotated[
    bool | None,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that the model's repository brings.  [default: off]",
        show_default=False,
    ),
    Sets("engine.trust_remote_code"),
]
Limit = Annotated[
    int | None, typer.Option("--limit", help="Use the first N problems.", show_default=False), Sets("limit")
]
Prompt = Annotated[
    str | None,
    typer.Option("--prompt", help="plain, or chat for the tokenizer's chat template.", show_default="plain"),
    Sets("prompt.style"),
]
Shots = Annotated[
    int | None,
    typer.Option("--shots", help="Worked examples before each question.", show_default=False),
    Sets("prompt.shots"),
]
Examples = Annotated[
    str | None,
    typer.Option("--examples", help="The problem set they come from, e.g. gsm8k:train.", show_default=False),
    Sets("prompt.examples"),
]
Grader = Annotated[
    str | None,
    typer.Option(
        "--grader",
        help="number, number-strict, math, lm-evaluation-harness' gsm8k-strict-match and others, or "
        "package.module:Name for one of your own (docs/problems.md).",
        show_default="the problem set's own",
    ),
    Sets("grading.grader"),
]
Engine = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        help="URL of a vLLM server to use instead of starting an engine (docs/servers.md); repeat it for several.",
        show_default=False,
    ),
    Sets("engine.urls"),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any other setting, e.g. --set rollout.max_staleness=4; `treeopo settings` lists them.",
        show_default=False,
    ),
]


def lasting(store: Path | str) -> None:
    """Find out whether a new store outlives the command.

    Raises:
        ConfigError: it does not.
    """
    from treeopo.errors import ConfigError

    if str(store).startswith("memory://"):
        raise ConfigError(
            f"{store}: goes with the process that writes it; give a path, or the URL of a place that lasts"
        )


def given_settings(command: Callable[..., None], context: typer.Context) -> dict[str, Any]:
    """The settings, by dotted name, that were given to `command`: by options of their own, and by `--set`.

    Raises:
        ConfigError: a `--set` has no `=`.
    """
    found = {}
    for parameter, hint in get_type_hints(command, include_extras=True).items():
        value = context.params.get(parameter)
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Sets) and value not in (None, [], ()):  # nothing, or an option that may be repeated
                found[extra.name] = extra.read(value)
    return found | settings(context.params.get("set_"))


def flag_names(command: Callable[..., None], context: typer.Context) -> dict[str, str]:
    """How a person gives each setting, by dotted name, that an option or argument of `command` gives."""
    shown = {parameter.name: parameter for parameter in context.command.params}
    return {
        extra.name: max(shown[name].opts, key=len) if shown[name].param_type_name == "option" else name.upper()
        for name, hint in get_type_hints(command, include_extras=True).items()
        for extra in getattr(hint, "__metadata__", ())
        if isinstance(extra, Sets)
    }


def settings(pairs: list[str] | None) -> dict[str, Any]:
    """`name=value` pairs, each value read as TOML where it is TOML and as text where it is not.

    Raises:
        ConfigError: a pair has no `=`.
    """
    import tomllib

    from treeopo.errors import ConfigError

    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: write it as name=value, e.g. --set learner.optimizer.learning_rate=1e-5")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = value
    return found
