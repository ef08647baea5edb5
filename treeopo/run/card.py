"""The README that travels with trained weights: what they are, how to load them, how they were made."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from treeopo.evaluation.periodic import read_best
from treeopo.methods import find_method
from treeopo.run.directory import RunDirectory
from treeopo.trackers.jsonl import read_metrics

_FIGURES = (
    "rollout/reward",
    "learner/loss",
    "learner/grad_norm",
    "advantage/constraint_satisfaction",
    "advantage/variance",
    "learner/ess_share",
    "learner/value_error",
)
_LOADING = {
    "peft": """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("PATH")  # this adapter over its base
tokenizer = AutoTokenizer.from_pretrained("PATH")""",
    "transformers": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")  # or vllm.LLM("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")""",
}


def model_card(run: RunDirectory, base: str, library: str) -> str:
    """A card in the hub's format (YAML metadata, then Markdown) for weights of `run` trained over `base`.

    `library` is peft for the adapter, transformers for the merged model.
    """
    from huggingface_hub import ModelCardData

    method = find_method(run.config.method)
    metadata = ModelCardData(
        base_model=base,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["treeopo", method.name, "lora", "reinforcement-learning", "reasoning"],
    )
    record = json.loads((run.path / "config.json").read_bytes())
    return f"""---
{metadata.to_yaml()}
---

# {base} after {method.name}

Trained with [treeopo](https://pypi.org/project/treeopo/) by `{method.name}`: {method.summary} ({method.source}).

```python
{_LOADING[library]}
```

## Figures

{_figures(run, read_metrics(run.metrics))}

## Settings

Versions: {", ".join(f"{name} {version}" for name, version in record["versions"].items())}.

```json
{json.dumps(record["config"], indent=2)}
```
"""


def merged_card(base: str, adapter: Path) -> str:
    """A card for an adapter merged into `base` of which no run is at hand."""
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(base_model=base, library_name="transformers", pipeline_tag="text-generation")
    return f"""---
{metadata.to_yaml()}
---

# {base} with {adapter.name}

The adapter `{adapter.name}` merged into its base by [treeopo](https://pypi.org/project/treeopo/).

```python
{_LOADING["transformers"]}
```
"""


def _figures(run: RunDirectory, steps: Sequence[Mapping[str, float]]) -> str:
    """Mean of the first and of the last tenth of the steps, at least one; and the best evaluation, if there was one."""
    tenth = max(1, len(steps) // 10)
    lines = [f"| {len(steps)} steps | first {tenth} | last {tenth} |", "|---|---|---|"]
    for name in _FIGURES:
        ends = [[step[name] for step in part if name in step] for part in (steps[:tenth], steps[-tenth:])]
        if all(ends):
            lines.append(f"| {name} | " + " | ".join(f"{sum(end) / len(end):.4g}" for end in ends) + " |")
    best = read_best(run.best)
    if best:
        lines += ["", "Best policy by evaluation: " + ", ".join(f"{name} {value:.4g}" for name, value in best.items())]
    return "\n".join(lines)
