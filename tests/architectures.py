"""Small models of the architectures that people bring, and whether an engine says of each what transformers says.

Each is made at random and tuned for a moment on texts whose digits must be copied over a distance, so that attention,
routing and scaling all bear on its log-probabilities, and half of its answers are right. Then the three commands run,
with every completion of their engines kept, and transformers computes each log-probability again under the very policy
that sampled it.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tests.tiny_models import VOCABULARY, byte_tokenizer
from treeopo.config import BuildConfig, EvalConfig, TrainConfig, load_config
from treeopo.engines.launch import start_engine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.jobs.build import build_store
from treeopo.jobs.evaluate import evaluate
from treeopo.jobs.train import train
from treeopo.ports import Engine
from treeopo.problems.prompting import PromptSettings
from treeopo.problems.spec import load_problem_set
from treeopo.records import Completion, Request
from treeopo.run.directory import RunDirectory
from treeopo.run.questions import make_questions

STEPS = 2
PROBLEMS = "tests.architectures:problems"

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": VOCABULARY - 1,
    "pad_token_id": VOCABULARY - 1,
    "head_dim": 32,  # times the heads is more than the hidden size
}
_MIXTURE = _SHAPE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "Llama": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=False),
    "Qwen2.5": lambda: Qwen2Config(**_SHAPE | {"hidden_size": 128}, tie_word_embeddings=True),
    "Qwen3": lambda: Qwen3Config(**_SHAPE, tie_word_embeddings=True),
    "Gemma 3": lambda: Gemma3TextConfig(
        **_SHAPE | {"num_hidden_layers": 3}, sliding_window=16, sliding_window_pattern=3, query_pre_attn_scalar=48
    ),
    "Mistral": lambda: MistralConfig(**_SHAPE, sliding_window=16, tie_word_embeddings=False),
    "Mixtral": lambda: MixtralConfig(**_SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "Qwen2-MoE": lambda: Qwen2MoeConfig(**_MIXTURE | {"hidden_size": 128}, shared_expert_intermediate_size=48),
    "Qwen3-MoE": lambda: Qwen3MoeConfig(**_MIXTURE, norm_topk_prob=True),
    "OLMoE": lambda: OlmoeConfig(**_MIXTURE | {"hidden_size": 128}),
}
"""By the name that people know them by."""


def problems(split: str) -> Iterator[dict[str, str]]:
    begin = {"train": 0, "test": 5}[split]
    for number in range(begin, begin + 5):
        yield {"id": f"p{number}", "question": f"Which number comes after {number}?", "answer": str(number + 1)}


def make_model(name: str, directory: Path, steps: int = 150) -> Path:
    """A model of the architecture that answers as `_text` does, in float32."""
    torch.manual_seed(0)
    byte_tokenizer().save_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[name]())
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)  # norms and biases start neutral, which hides mistakes
    tokenizer, rng = ModelTokenizer(str(directory)), random.Random(0)
    questions = make_questions(tokenizer, PromptSettings(), load_problem_set(f"{PROBLEMS}:train", None, None))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = [
            [*question.prompt_ids, *tokenizer.encode(_text(question.problem.answer, rng)), tokenizer.eos_token_id]
            for question in rng.choices(questions, k=8)
        ]
        longest = max(map(len, rows))
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
        loss = model(input_ids=labels.clamp(min=0), attention_mask=(labels >= 0).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    return directory


def _text(answer: str, rng: random.Random) -> str:
    """A solution of two or three steps, right every other time."""
    steps = [rng.choice(("One more.", "Count on.")) for _ in range(rng.randint(1, 2))]
    return "\n\n".join([*steps, f"#### {answer if rng.random() < 0.5 else rng.randint(0, 9)}"])


@dataclass(slots=True)
class Recorder:
    """A `StartEngine` whose engines' completions are kept."""

    kept: list[tuple[Request, Completion]] = field(default_factory=list)

    async def __call__(self, model: str, options: EngineOptions, adapters: Adapters | None) -> Engine:
        return _Recording(await start_engine(model, options, adapters), self.kept)


class _Recording:
    def __init__(self, engine: Engine, kept: list[tuple[Request, Completion]]) -> None:
        self._engine, self._kept = engine, kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, request: Request) -> Completion:
        completion = await self._engine.generate(request)
        self._kept.append((request, completion))
        return completion


@dataclass(frozen=True, slots=True)
class Checked:
    """Completions of one command and of how many tokens; the largest difference, in nats, between the engine and
    transformers in the log-probability of a token that was sampled at temperature 1, or in how far a greedy token is
    below the best.
    """

    completions: int
    tokens: int
    difference: float


def differences(base: Path, adapters: Sequence[Path | None], kept: list[tuple[Request, Completion]]) -> Checked:
    """adapters: the policy of each version, None for the base itself."""
    policies = [_policy(base, adapter) for adapter in adapters]
    largest, tokens = 0.0, 0
    for request, completion in kept:
        prompt, ids = list(request.token_ids), completion.token_ids.tolist()
        sequence = torch.tensor([prompt + ids])
        by_version = {version: _logprobs(policies[version], sequence) for version in set(completion.versions.tolist())}
        for place, (token, version) in enumerate(zip(ids, completion.versions.tolist(), strict=True)):
            logprobs = by_version[version][len(prompt) + place - 1]
            own = logprobs.max() if request.temperature == 0 else completion.logprobs[place]
            largest = max(largest, abs(float(own) - float(logprobs[token])))
        tokens += len(ids)
    return Checked(len(kept), tokens, largest)


def _policy(base: Path, adapter: Path | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return (model if adapter is None else PeftModel.from_pretrained(model, str(adapter))).eval()


@torch.no_grad()
def _logprobs(model: Any, sequence: torch.Tensor) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = model(sequence).logits[0].double().log_softmax(-1).numpy()
    return found


def build(model: Path, store: Path) -> Checked:
    kept = Recorder()
    flags = {"teacher": str(model), "output": store, "problems": f"{PROBLEMS}:train", "engine.dtype": "float32"}
    flags |= {"search.rollouts": 8, "search.max_solution_tokens": 64, "engine.threads": 1}
    build_store(load_config(BuildConfig, file=None, flags=flags), _ignore, _ignore, kept)
    return differences(model, [None], kept.kept)


def learn(model: Path, store: Path, run: Path, **settings: Any) -> Checked:
    kept = Recorder()
    flags = {"student": str(model), "store": str(store), "output": run, "steps": STEPS}
    flags |= {"checkpoint_every": 1, "checkpoints_kept": STEPS, "learner.optimizer.learning_rate": 0.01}
    flags |= {"rollout.max_prompt_tokens": 100, "rollout.max_sequence_tokens": 160}
    flags |= {"learner.dtype": "float32", "engine.dtype": "float32", "engine.threads": 1, **settings}
    directory = RunDirectory.create(load_config(TrainConfig, file=None, flags=flags))
    summary = train(directory, _ignore, _ignore, kept)
    assert summary.informative_steps == STEPS, "nothing was learned, so that every policy was the base"
    adapters = [directory.checkpoints / f"step-{step:06d}" / "adapter" for step in range(1, STEPS)]
    return differences(model, [None, *adapters], kept.kept)


def score(model: Path, run: Path) -> Checked:
    kept = Recorder()
    flags = {"model": str(run), "problems": (f"{PROBLEMS}:test",), "samples": 3, "max_new_tokens": 64}
    flags |= {"engine.dtype": "float32", "engine.threads": 1}
    evaluate(load_config(EvalConfig, file=None, flags=flags), _ignore, _ignore, kept)
    return differences(model, [None, run / "adapter"], kept.kept)


def _ignore(*arguments: object) -> None:
    pass
