"""`treeopo eval`: accuracy of a model, an adapter or a run."""

from pathlib import Path
from typing import Annotated

import typer

from treeopo_cli.options import ConfigFile, Engine, Examples, Limit, Prompt, Seed, Set, Shots, TrustRemoteCode


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help="Hub name, directory, adapter or run.", show_default="the embedded student"),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="A second model, compared on the same problems.", show_default=False)
    ] = None,
    problems: Annotated[
        list[str] | None,
        typer.Option(
            help="As for mcts build; repeat it for several sets.",
            show_default="staged-arithmetic:easy:test",
        ),
    ] = None,
    limit: Limit = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Completions a problem at temperature 1, beside the greedy one.", show_default="0"),
    ] = None,
    prompt: Prompt = None,
    shots: Shots = None,
    examples: Examples = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Directory for scores.json and every completion; goes on if stopped."),
    ] = None,
    engine: Engine = None,
    trust_remote_code: TrustRemoteCode = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
) -> None:
    """Solve problems greedily, and by sampling if asked, and print pass@1, pass@k and maj@k with 95% intervals."""
    from treeopo import runs
    from treeopo.config import EvalConfig, load_config
    from treeopo_cli import render
    from treeopo_cli.options import settings

    flags = {
        "model": model,
        "against": against,
        "problems": problems or None,
        "limit": limit,
        "samples": samples,
        "prompt.style": prompt,
        "prompt.shots": shots,
        "prompt.examples": examples,
        "output": output,
        "engine.urls": engine or None,
        "seed": seed,
        "engine.trust_remote_code": trust_remote_code,
        **settings(set_),
    }
    resolved = load_config(EvalConfig, file=config, flags=flags)
    with render.EvalBar() as bar:
        evaluations = runs.evaluate(resolved, bar.notify, bar.advance)
    for evaluation in evaluations:
        render.evaluation(evaluation)
