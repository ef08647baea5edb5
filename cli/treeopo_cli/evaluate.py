"""`treeopo eval`: accuracy of a model, an adapter or a run."""

from pathlib import Path
from typing import Annotated

import typer

from treeopo_cli.options import (
    ConfigFile,
    Engine,
    Examples,
    Grader,
    Limit,
    Prompt,
    Seed,
    Set,
    Sets,
    Shots,
    TrustRemoteCode,
)

Model = Annotated[
    str | None,
    typer.Argument(help="Hub name, directory, adapter or run.", show_default="the embedded student"),
    Sets("model"),
]
Against = Annotated[
    str | None,
    typer.Option(help="A second model, compared on the same problems.", show_default=False),
    Sets("against"),
]
Base = Annotated[
    str | None,
    typer.Option(
        help="The model under an adapter, where that names one that has moved.", show_default="adapter_config.json's"
    ),
    Sets("base"),
]
Problems = Annotated[
    list[str] | None,
    typer.Option(
        help="As for mcts build; repeat it for several sets.",
        show_default="staged-arithmetic:easy:test",
    ),
    Sets("problems"),
]
Samples = Annotated[
    int | None,
    typer.Option(help="Completions a problem at temperature 1, beside the greedy one.", show_default="0"),
    Sets("samples"),
]
Protocol = Annotated[
    str | None,
    typer.Option(
        help="Ask and grade as another project does: lm-eval-gsm8k, lm-eval-gsm8k-cot or lm-eval-gsm8k-cot-zeroshot "
        "(docs/evaluation.md).",
        show_default=False,
    ),
    Sets("protocol"),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Directory for scores.json and every completion; goes on if stopped."),
    Sets("output"),
]


def evaluate(
    context: typer.Context,
    model: Model = None,
    against: Against = None,
    base: Base = None,
    problems: Problems = None,
    limit: Limit = None,
    grader: Grader = None,
    samples: Samples = None,
    prompt: Prompt = None,
    shots: Shots = None,
    examples: Examples = None,
    protocol: Protocol = None,
    output: Output = None,
    engine: Engine = None,
    trust_remote_code: TrustRemoteCode = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
) -> None:
    """Solve problems greedily, and by sampling if asked, and print pass@1, pass@k and maj@k with 95% intervals."""
    from treeopo.config import EvalConfig, load_config
    from treeopo.jobs.evaluate import evaluate as run_evaluation
    from treeopo_cli import bars, render
    from treeopo_cli.options import given_settings

    resolved = load_config(EvalConfig, file=config, flags=given_settings(evaluate, context))
    try:
        with bars.EvalBar() as bar:
            evaluations = run_evaluation(resolved, bar.notify, bar.advance)
    except KeyboardInterrupt:
        kept = "the same command goes on with what is there" if resolved.output else "only with --output it can go on"
        render.say("stopped; {}", kept)
        raise typer.Exit(130) from None
    for evaluation in evaluations:
        render.evaluation(evaluation)
