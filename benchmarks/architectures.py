"""Architectures: `mcts build`, two asynchronous training steps and `eval` on real vLLM, against transformers.

    python benchmarks/architectures.py [NAME ...]

Small random models, tuned for a moment (tests/architectures.py); everything in float32. A row an architecture, a column a
command: the largest difference, in nats, between the log-probability that the engine returned with a sampled token and
the one that transformers (and PEFT) give it under the policy that sampled it; for greedy tokens, how far they are
below the best. What is refused shows its line.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.architectures import CONFIGS, build, learn, make_model, score
from treeopo.errors import TreeopoError


def main(names: list[str]) -> None:
    print("| architecture | `mcts build` | two steps | `eval` |\n|---|---|---|---|", flush=True)
    for name in names or CONFIGS:
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory)
            model = make_model(name, place / "model")
            cells = []
            for check in (
                lambda: build(model, place / "trees.zarr"),
                lambda: learn(model, place / "trees.zarr", place / "run"),
                lambda: score(model, place / "run"),
            ):
                try:
                    checked = check()
                    cells.append(f"{checked.difference:.1e} ({checked.tokens:,} tokens)")
                except TreeopoError as error:
                    cells.append(str(error))
                    break
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
