"""Threads of one side that has the machine to itself, as in `mcts build`, `eval` and `train --method sft`: by size.

    python benchmarks/threads_alone.py [--requests 16] [--tokens 48]

Random Llama models of growing size under the embedded tokenizer, so that nothing is downloaded. For each: tokens a
second of the vLLM engine (all requests at once) and of a learner's step, on one thread and on all cores, and the ratio.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from treeopo.engines.launch import start_vllm
from treeopo.engines.settings import EngineOptions
from treeopo.learner.learner import Learner
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LearnerSettings
from treeopo.records import Request, TrainBatch, TrainSequence
from treeopo.tiny import ensure_tiny

SHAPES = ((128, 4), (256, 4), (320, 8), (384, 12), (512, 16), (576, 30))
"""Hidden size and layers; the last is SmolLM2-135M's, without its vocabulary."""

PROMPT = 64


def models(directory: Path) -> Iterator[tuple[int, Path]]:
    """Parameters and directory of each."""
    tokenizer = AutoTokenizer.from_pretrained(ensure_tiny("easy").student)
    for hidden, layers in SHAPES:
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=8 * hidden // 3, num_hidden_layers=layers,
            num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, max_position_embeddings=1024,
            eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        path = directory / f"{hidden}x{layers}"
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        yield model.num_parameters(), path


async def engine_rate(model: Path, threads: int, requests: int, tokens: int) -> float:
    """Completion tokens a second, the second of two equal rounds."""
    engine = await start_vllm(str(model), EngineOptions(threads=threads, max_model_tokens=PROMPT + tokens), None)
    try:
        for round_ in range(2):
            random = np.random.default_rng(round_)
            asked = [
                Request(random.integers(1, 90, PROMPT).astype(np.int32), tokens, seed=each) for each in range(requests)
            ]
            began = time.perf_counter()
            said = await asyncio.gather(*map(engine.generate, asked))
            seconds = time.perf_counter() - began
        return sum(len(each.token_ids) for each in said) / seconds
    finally:
        await engine.close()


def learner_rate(model: Path, threads: int, requests: int, tokens: int) -> float:
    """Tokens a second of a step, the second of two."""
    torch.set_num_threads(threads)
    settings = LearnerSettings()
    policy = LoraPolicy.load(str(model), settings.lora, dtype=torch.float32, device=torch.device("cpu"))
    learner = Learner(policy, [PolicyGradient(settings)], settings, steps=2, temperature=1.0)
    for number in range(2):
        random = np.random.default_rng(number)
        rows = tuple(
            TrainSequence(
                random.integers(1, 90, PROMPT + tokens).astype(np.int32), PROMPT, np.ones(tokens, np.float32),
                np.full(tokens, -4.0, np.float32), np.full(tokens, number, np.int32),
            )
            for _ in range(requests)
        )  # fmt: skip
        began = time.perf_counter()
        learner.step(TrainBatch(number, rows, {}))
        seconds = time.perf_counter() - began
    return requests * (PROMPT + tokens) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"parameters  engine tokens/s on 1, on {cores}, ratio   learner tokens/s on 1, on {cores}, ratio")
    with tempfile.TemporaryDirectory() as directory:
        for parameters, model in models(Path(directory)):
            engine = [asyncio.run(engine_rate(model, each, given.requests, given.tokens)) for each in (1, cores)]
            learner = [learner_rate(model, each, given.requests, given.tokens) for each in (1, cores)]
            print(
                f"{parameters:10,}  {engine[0]:8,.0f} {engine[1]:8,.0f} {engine[1] / engine[0]:6.2f}  "
                f"{learner[0]:8,.0f} {learner[1]:8,.0f} {learner[1] / learner[0]:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
