"""An engine of your own: a teacher that is a Python function, here one that guesses.

treeopo mcts build --teacher MODEL --problems problems.jsonl --set engine.kind=examples.engine:start

MODEL gives the tokenizer. An engine that is no script: examples/transformers_engine.py.
"""

import random
from math import log

from treeopo.engines.scripted import Pieces, ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.ports import Engine

DIGITS = {"odd": "13579", "even": "02468"}


def guess(prompt: str, rng: random.Random, version: int) -> Pieces:
    """Odd or even, then one of the five digits of that kind, each with its log-probability."""
    said = next((kind for kind in DIGITS if prompt.endswith(f"{kind}\n\n")), None)
    kind = said or rng.choice(list(DIGITS))
    answer = (f"#### {rng.choice(DIGITS[kind])}", -log(5))
    return [answer] if said else [(f"{kind}\n\n", -log(2)), answer]


async def start(model: str, options: EngineOptions, adapters: Adapters | None) -> Engine:
    return ScriptedEngine(guess, ModelTokenizer(model), max_model_tokens=options.max_model_tokens)
