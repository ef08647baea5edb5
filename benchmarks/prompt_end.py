"""What the end of a plain prompt costs: nats of the first token of worked solutions behind the prompt's last tokens as
the tokenizer ends a text with them, and as it has them before a word (`ModelTokenizer.begin`).

    python benchmarks/prompt_end.py MODEL --problems gsm8k:train --limit 40
"""

import argparse

import torch
from transformers import AutoModelForCausalLM

from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.spec import load_problem_set


def nats(model: torch.nn.Module, tokenizer: ModelTokenizer, problems: ProblemSet, *, alone: bool) -> list[float]:
    """Of the first token of each worked solution, given its prompt."""
    found = []
    for problem in problems:
        text = problems.prompt(problem)
        prompt = tokenizer.hf.encode(text) if alone else tokenizer.begin(text)
        first = tokenizer.encode(problem.solution or "")[0]
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1]
        found.append(-logits.log_softmax(-1)[first].item())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--problems", default="gsm8k:train")
    parser.add_argument("--limit", type=int, default=40)
    given = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    tokenizer = ModelTokenizer(given.model)
    problems = load_problem_set(given.problems, given.limit)
    for name, alone in (("as a text ends", True), ("as before a word", False)):
        end = tokenizer.hf.encode("?\n\n") if alone else tokenizer.begin("?\n\n")
        told = nats(model, tokenizer, problems, alone=alone)
        print(f"{name}: a blank line is {len(end) - 1} tokens; first token {sum(told) / len(told):.2f} nats")


if __name__ == "__main__":
    main()
