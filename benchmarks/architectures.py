"""Architectures: `mcts build`, two asynchronous training steps and `eval` on real vLLM, against transformers.

    python benchmarks/architectures.py [NAME ...]

Small random models, tuned for a moment (tests/architectures.py); everything in float32. A row an architecture, a column
a command: the largest difference, in nats, between the log-probability that the engine returned with a sampled token
and the one that transformers (and PEFT) give it under the policy that sampled it; for greedy tokens, how far they are
below the best. What is refused shows its line.
"""

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.architectures import CONFIGS, build, learn, make_model, score
from treeopo.errors import TreeopoError


def cells(name: str, place: Path) -> Iterator[str]:
    """One after the other, up to the first command that refuses."""
    model, trees, run = make_model(name, place / "model"), place / "trees.zarr", place / "run"
    for check in (partial(build, model, trees), partial(learn, model, trees, run), partial(score, model, run)):
        try:
            checked = check()
        except TreeopoError as error:
            yield str(error)
            return
        yield f"{checked.difference:.1e} ({checked.tokens:,} tokens)"


def main(names: list[str]) -> None:
    disable_progress_bar()
    print("| architecture | `mcts build` | two steps | `eval` |\n|---|---|---|---|", flush=True)
    for name in names or CONFIGS:
        with tempfile.TemporaryDirectory() as directory:
            print(f"| {name} | {' | '.join(cells(name, Path(directory)))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
