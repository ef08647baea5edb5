"""What an engine in bfloat16 gets of a policy: base and adapter merged and rounded to the nearest, or without bias.

    python benchmarks/rounding.py BASE ADAPTER [--scales 0.05 0.1 0.25 0.5 1]

ADAPTER is a LoRA adapter of BASE, whose weights are in bfloat16. Its B is scaled to stand for the updates of a run's
first steps. For each scale: KL(policy || base), the share of the update that arrives (by projection, over all adapted
weights) and KL(policy || served) in nats a token, computed in float32 over completions that the policy samples.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from transformers import AutoTokenizer

from treeopo.learner.policy import LoraPolicy
from treeopo.learner.rounding import rounded
from treeopo.learner.settings import LoraSettings
from treeopo.problems.spec import load_problem_set

Round = Callable[[Tensor], Tensor]
ROUNDINGS: dict[str, Round] = {
    "nearest": lambda weight: weight.to(torch.bfloat16),
    "without bias": lambda weight: rounded(weight, torch.bfloat16),
}
PROBLEMS, TOKENS = 16, 48


def layers(policy: LoraPolicy) -> list[Linear]:
    return [module for module in policy.model.modules() if isinstance(module, Linear)]


@torch.no_grad()
def logprobs(policy: LoraPolicy, sequences: list[Tensor]) -> Tensor:
    """Of the vocabulary at every token (T, V)."""
    return torch.cat([policy.model(ids).logits[0].log_softmax(-1) for ids in sequences])


def kl(policy_TV: Tensor, other_TV: Tensor) -> float:
    return float((policy_TV.exp() * (policy_TV - other_TV)).sum(-1).mean())


@torch.no_grad()
def served(policy: LoraPolicy, sequences: list[Tensor], round_: Round) -> tuple[float, Tensor]:
    """The share of the update that arrives, and the log-probabilities (T, V) under base and adapter as rounded."""
    kept = whole = 0.0
    bases = []
    for layer in layers(policy):
        weight, delta = layer.get_base_layer().weight, layer.get_delta_weight("default")
        arrived = round_(weight + delta).float() - weight
        kept, whole = kept + float((arrived * delta).sum()), whole + float(delta.square().sum())
        bases.append(weight.clone())
        weight += arrived
    with policy.model.disable_adapter():
        result = logprobs(policy, sequences)
    for layer, base in zip(layers(policy), bases, strict=True):
        layer.get_base_layer().weight.copy_(base)
    return kept / whole, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.5, 1.0])
    arguments = parser.parse_args()
    device = torch.device("cpu")
    policy = LoraPolicy.load(
        arguments.base, LoraSettings(), dtype=torch.float32, device=device, adapter=arguments.adapter
    )
    policy.model.eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    torch.manual_seed(0)
    questions = [problem.question for problem in load_problem_set("staged-arithmetic:easy:train", PROBLEMS)]
    prompts = [tokenizer(question, return_tensors="pt") for question in questions]
    sequences = [policy.model.generate(**each, do_sample=True, max_new_tokens=TOKENS) for each in prompts]
    full = [layer.lora_B["default"].weight.clone() for layer in layers(policy)]
    print(
        "| scale | KL(policy, base) | " + " | ".join(f"{name}: arrives | KL(policy, served)" for name in ROUNDINGS), "|"
    )
    print("|---" * (2 + 2 * len(ROUNDINGS)) + "|")
    for scale in arguments.scales:
        for layer, weight in zip(layers(policy), full, strict=True):
            layer.lora_B["default"].weight.data.copy_(scale * weight)
        own = logprobs(policy, sequences)
        with policy.model.disable_adapter():
            row = [f"{scale:g}", f"{kl(own, logprobs(policy, sequences)):.2g}"]
        for round_ in ROUNDINGS.values():
            share, found = served(policy, sequences, round_)
            row += [f"{share:.0%}", f"{kl(own, found):.2g}"]
        print("| " + " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
