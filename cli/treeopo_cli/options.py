"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file with any setting; flags win over it.", show_default=False)
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.", show_default="0")]
TrustRemoteCode = Annotated[
    bool | None,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that the model's repository brings.  [default: off]",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", help="Use the first N problems.", show_default=False)]
Prompt = Annotated[
    str | None,
    typer.Option("--prompt", help="plain, or chat for the tokenizer's chat template.", show_default="plain"),
]
Shots = Annotated[int | None, typer.Option("--shots", help="Worked examples before each question.", show_default=False)]
Examples = Annotated[
    str | None,
    typer.Option("--examples", help="The problem set they come from, e.g. gsm8k:train.", show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting, e.g. --set rollout.max_staleness=4.", show_default=False),
]

Engine = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        help="URL of a vLLM server to use instead of starting an engine (docs/servers.md); repeat it for several.",
        show_default=False,
    ),
]


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
