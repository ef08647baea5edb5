"""One training step against TRL's loss step and a plain transformers + PEFT loop: speed, shared prefixes, peak memory.

    OMP_NUM_THREADS=1 python benchmarks/learner.py [speed sharing prefixes memory] [--model DIRECTORY] [--rounds 5]

speed: every side takes forward and backward of the same 128 ragged sequences (16 groups, drawn from a seed with the
    lengths of the embedded default) with the same LoRA policy, in micro-batches of as many sequences. plain is
    padded sequences, full logits, log_softmax, gather; sorted is the same with sequences sorted by length.
sharing: our step with prefixes shared against ours without, for growing shares of tokens saved.
prefixes: our step with the log-probability of the prefixes against ours without, for the embedded shape and for a
    larger one with a vocabulary of 50,000.
memory: peak of one step at a vocabulary of 151,936 over what the process held before, each side in a process of its
    own. Without --model, a Qwen2 of random weights. Runs on a GPU if there is one. Needs `pip install trl` for TRL.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from treeopo.learner.learner import Learner
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LearnerSettings, LoraSettings
from treeopo.records import TrainBatch, TrainSequence

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE: Literal["bfloat16", "float32"] = "bfloat16" if DEVICE.type == "cuda" else "float32"
SETTINGS = LearnerSettings(lora=LoraSettings(dropout=0.0), microbatch_tokens=2048, dtype=DTYPE)
GROUPS, GROUP, MICRO = 16, 8, 28  # MICRO padded sequences are about 2,048 tokens
LARGE_VOCABULARY = 151_936

Step = Callable[[TrainBatch], None]


def random_model(directory: Path, vocabulary: int, hidden: int, layers: int) -> Path:
    """A Qwen2 of random weights with tied embeddings."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return directory


def ragged_batch(vocabulary: int, question: int = 30, groups: int = GROUPS, completion: int = 28) -> TrainBatch:
    """Groups of prefixes along traces that branch: a question, steps of 9 tokens, then a completion of ragged length.

    The defaults are the embedded default's: prefixes of 21 to 68 tokens, completions of 3 to 60.
    """
    random = np.random.default_rng(0)
    rows = []
    for _ in range(groups):
        root = random.integers(0, vocabulary, question)
        steps = random.integers(0, vocabulary, (4, 2, 9))  # at each depth one of two steps
        for _ in range(GROUP):
            taken = [steps[depth, random.integers(2)] for depth in range(random.integers(0, 5))]
            length = int(np.clip(random.gamma(4, completion / 4), 3, 8 * completion))
            ids = np.concatenate([root, *taken, random.integers(0, vocabulary, length)]).astype(np.int32)
            advantage = np.full(length, random.normal(), np.float32)
            behaviour = np.full(length, -np.log(vocabulary), np.float32)
            versions = np.zeros(length, np.int32)
            prefix = len(ids) - length
            rows.append(TrainSequence(ids, prefix, advantage, behaviour, versions, question_length=question))
    return TrainBatch(0, tuple(rows), {})


def load(model: Path) -> LoraPolicy:
    torch.manual_seed(0)
    return LoraPolicy.load(str(model), SETTINGS.lora, dtype=getattr(torch, DTYPE), device=DEVICE)


def ours(model: Path, settings: LearnerSettings) -> Step:
    learner = Learner(load(model), [PolicyGradient(settings)], settings, steps=1000, temperature=1.0)
    return lambda batch: void(learner.step(replace(batch, number=learner.version)))


def void(_: object) -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def padded(rows: list[TrainSequence]) -> dict[str, Tensor]:
    """Prompts padded on the left, completions on the right, as TRL holds them."""
    prompt = max(row.prefix_length for row in rows)
    longest = max(row.completion_length for row in rows)
    ids = torch.zeros(len(rows), prompt + longest, dtype=torch.long)
    mask, advantages = torch.zeros_like(ids), torch.zeros(len(rows))
    behaviour = torch.zeros(len(rows), longest)
    for index, row in enumerate(rows):
        start, end = prompt - row.prefix_length, prompt + row.completion_length
        ids[index, start:end] = torch.as_tensor(row.token_ids)
        mask[index, start:end] = 1
        advantages[index] = float(row.advantages[0])
        behaviour[index, : row.completion_length] = torch.as_tensor(row.behaviour_logprobs)
    columns = {
        "prompt_ids": ids[:, :prompt],
        "prompt_mask": mask[:, :prompt],
        "completion_ids": ids[:, prompt:],
        "completion_mask": mask[:, prompt:],
        "advantages": advantages,
        "old_per_token_logps": behaviour,
    }
    return {name: column.to(DEVICE) for name, column in columns.items()}


def in_micro_batches(loss: Callable[[dict[str, Tensor]], Tensor], policy: LoraPolicy, by_length: bool) -> Step:
    """A step that accumulates the gradient of `loss` over MICRO sequences at a time, then takes AdamW's step."""
    optimizer = torch.optim.AdamW(policy.trainable, lr=3e-5)

    def step(batch: TrainBatch) -> None:
        rows = sorted(batch.sequences, key=lambda row: -len(row.token_ids)) if by_length else list(batch.sequences)
        policy.model.train()
        for start in range(0, len(rows), MICRO):
            loss(padded(rows[start : start + MICRO])).backward()
        torch.nn.utils.clip_grad_norm_(policy.trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        void(None)

    return step


def plain(model: Path, *, by_length: bool) -> Step:
    policy = load(model)

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        keep = inputs["completion_ids"].shape[1]
        logits = policy.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep + 1
        ).logits
        logs = torch.log_softmax(logits[:, :-1].float(), dim=-1)
        chosen = logs.gather(2, inputs["completion_ids"][..., None])[..., 0]
        ratio = (chosen.detach() - inputs["old_per_token_logps"]).exp().clamp(max=2.0)
        terms = ratio * inputs["advantages"][:, None] * chosen * inputs["completion_mask"]
        return -terms.sum() / (GROUPS * GROUP)

    return in_micro_batches(loss, policy, by_length)


def trl(model: Path, *, by_length: bool) -> Step:
    from datasets import Dataset
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer
    from trl import GRPOConfig, GRPOTrainer

    end = "<|endoftext|>"
    vocabulary = {character: index for index, character in enumerate([*sorted(ByteLevel.alphabet()), end])}
    special = dict.fromkeys(("unk_token", "eos_token", "pad_token"), end)
    policy = load(model)
    trainer = GRPOTrainer(
        model=policy.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=GROUP,
            num_generations=GROUP,
            beta=0.0,
            use_cpu=DEVICE.type == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a"] * GROUP}),
        processing_class=Qwen2Tokenizer(vocab=vocabulary, merges=[], **special),
    )
    trainer.current_gradient_accumulation_steps = 1
    return in_micro_batches(
        lambda inputs: trainer.compute_loss(trainer.model, {**inputs, "num_items_in_batch": torch.ones(())}),
        policy,
        by_length,
    )


def medians(sides: dict[str, Step], batch: TrainBatch, rounds: int) -> dict[str, float]:
    """Median seconds of a step, the sides alternating; process time on a CPU, so that neighbours count less."""
    clock = time.process_time if DEVICE.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(rounds + 1):  # the first warms up
        for name, step in sides.items():
            began = clock()
            step(batch)
            if round_number:
                seconds[name].append(clock() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def speed(model: Path, vocabulary: int, rounds: int) -> None:
    batch = ragged_batch(vocabulary)
    tokens = sum(len(row.token_ids) for row in batch.sequences)
    sides = {
        "ours": ours(model, SETTINGS),
        "ours, nothing shared": ours(model, replace(SETTINGS, share_prefixes="off")),
        "TRL": trl(model, by_length=False),
        "TRL, sorted": trl(model, by_length=True),
        "plain": plain(model, by_length=False),
        "plain, sorted": plain(model, by_length=True),
    }
    found = medians(sides, batch, rounds)
    print(f"{'':22s} tokens/s  ours is faster by")
    for name, seconds in found.items():
        print(f"{name:22s} {tokens / seconds:8.0f}  {seconds / found['ours']:8.2f}", flush=True)


def sharing(model: Path, vocabulary: int, rounds: int) -> None:
    print("tokens saved  speed-up of sharing")
    for question in (1, 30, 100, 300):
        batch = ragged_batch(vocabulary, question, groups=4)
        seen: dict[str, float] = {}
        learner = Learner(load(model), [PolicyGradient(SETTINGS)], SETTINGS, steps=1000, temperature=1.0)

        def shared(batch: TrainBatch, learner: Learner = learner, seen: dict[str, float] = seen) -> None:
            seen.update(learner.step(replace(batch, number=learner.version)))
            void(None)

        alone = ours(model, replace(SETTINGS, share_prefixes="off"))
        found = medians({"shared": shared, "alone": alone}, batch, rounds)
        print(f"{seen['shared_share']:12.0%}  {found['alone'] / found['shared']:19.2f}", flush=True)


def on(step: Step, batch: TrainBatch, _: TrainBatch) -> None:
    """`step` on a batch of its own, whatever the other sides take."""
    step(batch)


def prefixes(rounds: int) -> None:
    """The log-probability of the prefixes on the default batch: same weights, with question lengths and without."""
    print("model                     a step without  with  ratio")
    for name, shape in {"embedded": (512, 128, 4), "50k tokens": (50_000, 256, 6)}.items():
        with tempfile.TemporaryDirectory() as directory:
            model = random_model(Path(directory), *shape)
            batch = ragged_batch(shape[0], groups=GROUPS if name == "embedded" else 4)
            unknown = replace(batch, sequences=tuple(replace(row, question_length=None) for row in batch.sequences))
            sides: dict[str, Step] = {
                "without": partial(on, ours(model, SETTINGS), unknown),
                "with": ours(model, SETTINGS),
            }
            found = medians(sides, batch, rounds)
        ratio = found["with"] / found["without"]
        print(f"{name:24s}  {found['without']:12.3f} s  {found['with']:.3f} s  {ratio:.3f}", flush=True)


def memory(side: str) -> None:
    """In a process of its own: MiB that one step adds at its peak to what model and libraries hold."""
    with tempfile.TemporaryDirectory() as directory:
        model = random_model(Path(directory), LARGE_VOCABULARY, hidden=128, layers=2)
        step = {"ours": lambda: ours(model, SETTINGS), "plain": lambda: plain(model, by_length=True)}
        run = step[side]() if side in step else trl(model, by_length=True)
        step_batch = ragged_batch(LARGE_VOCABULARY, groups=4)
        gc.collect()
        before = held("VmRSS")
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on, not from loading
        run(step_batch)
        print(f"{side:6s} {held('VmHWM') - before:8.0f} MiB", flush=True)


def held(what: str) -> float:
    """Memory now (VmRSS) or at its peak (VmHWM), MiB."""
    if DEVICE.type == "cuda":
        found = torch.cuda.memory_allocated() if what == "VmRSS" else torch.cuda.max_memory_allocated()
        return found / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["speed", "sharing", "prefixes", "memory"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        memory(arguments.memory_of)
        return
    with tempfile.TemporaryDirectory() as directory:
        model = arguments.model or random_model(Path(directory), 512, hidden=128, layers=4)
        vocabulary = Qwen2Config.from_pretrained(model).vocab_size
        if "speed" in arguments.parts:
            speed(model, vocabulary, arguments.rounds)
        if "sharing" in arguments.parts:
            sharing(model, vocabulary, arguments.rounds)
    if "prefixes" in arguments.parts:
        prefixes(arguments.rounds)
    if "memory" in arguments.parts:
        for side in ("ours", "TRL", "plain"):
            subprocess.run([sys.executable, __file__, "--memory-of", side], check=True)


if __name__ == "__main__":
    main()
