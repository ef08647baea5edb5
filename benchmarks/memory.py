"""Peak memory of a learner's step under limits: predicted before it against measured, and the same gradients.

    OMP_NUM_THREADS=1 python benchmarks/memory.py [peaks gradients freed] [--model DIRECTORY] [--limits 6 12]
        [--rows 16]

Each row is a process of its own under a real limit on its address space (`ulimit -v`, by setrlimit), which nobody tells
the learner of; 0 is no limit. Its peak is the kernel's (VmHWM) from before the step to after it, for tree-opo with the
merged weights that are published after a step. Without --model, random weights of SmolLM2-135M's shape.

peaks: method by limit at default settings: plan, prediction, peak, their ratio, and the ratio of what was added to
    what the process held before.
gradients: one batch without dropout on every rung, planned under limits and after memory really ran out; the relative
    distance of the gradient from the one without a limit.
freed: the same step with glibc as it is and with freed blocks given back at once: peak and CPU time.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM

from treeopo.learner.learner import Learner
from treeopo.learner.losses import Losses
from treeopo.learner.losses.cross_entropy import CrossEntropy
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.room import return_freed_blocks
from treeopo.learner.settings import LearnerSettings
from treeopo.records import TrainBatch, TrainSequence

GIB = 2**30


def random_model(directory: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def batch(method: str, rows: int) -> TrainBatch:
    """sft: solutions of 60 to 180 tokens to questions of 60. tree-opo: groups of 8 from prefixes of a question and up
    to three steps of 25 tokens along one trace, completions of 40 to 120 tokens.
    """
    random = np.random.default_rng(0)
    found = []
    for index in range(rows):
        if index % 8 == 0 or method == "sft":
            trace = random.integers(0, 49152, 60 + 75)
        prefix = 60 if method == "sft" else 60 + 25 * int(random.integers(0, 4))
        length = int(random.integers(60, 181) if method == "sft" else random.integers(40, 121))
        ids = np.concatenate([trace[:prefix], random.integers(0, 49152, length)]).astype(np.int32)
        advantage = np.full(length, 1.0 if method == "sft" else random.normal(), np.float32)
        logprobs, versions = np.full(length, -10.0, np.float32), np.zeros(length, np.int32)
        found.append(TrainSequence(ids, prefix, advantage, logprobs, versions, question_length=60))
    return TrainBatch(0, tuple(found), {})


def status(what: str) -> float:
    """MiB of VmRSS or VmHWM."""
    return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0]) / 1024


def child(asked: dict[str, Any]) -> dict[str, Any]:
    """One step of one learner under one limit."""
    if asked["limit"]:
        resource.setrlimit(resource.RLIMIT_AS, (int(asked["limit"] * GIB),) * 2)
    torch.set_num_threads(1)
    settings = LearnerSettings(**asked["settings"])
    settings = replace(settings, lora=replace(settings.lora, dropout=asked["dropout"]))
    torch.manual_seed(0)
    device = torch.device("cpu")
    policy = LoraPolicy.load(asked["model"], settings.lora, dtype=torch.float32, device=device)
    if not asked["dropout"]:
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.01)  # zero, as a fresh one is, would hide half of the gradient
    losses: Losses = [CrossEntropy() if asked["method"] == "sft" else PolicyGradient(settings)]
    told: list[str] = []
    learner = Learner(policy, losses, settings, steps=9, temperature=1.0, notify=told.append)
    if asked.get("freed"):
        return_freed_blocks()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on, not from loading
    before, began = status("VmRSS"), time.process_time()

    def keep(optimizer: Optimizer, args: object, kwargs: object) -> None:
        if asked["gradient"]:
            parts = [weight.grad.flatten() for weight in policy.trainable if weight.grad is not None]
            np.save(asked["gradient"], torch.cat(parts).numpy())

    hook = register_optimizer_step_pre_hook(keep)
    metrics = learner.step(batch(asked["method"], asked["rows"]))
    hook.remove()
    seconds = time.process_time() - began
    if asked["method"] == "tree-opo":
        with tempfile.TemporaryDirectory() as directory:
            learner.save_merged(Path(directory) / "merged.safetensors")
    return {
        "before": before,
        "peak": status("VmHWM"),
        "predicted": learner.predicted_peak_mib,
        "tokens": int(metrics["learner/microbatch_tokens"]),
        "again": bool(metrics["learner/gradient_checkpointing"]),
        "ran_out": int(metrics["learner/out_of_memory"]),
        "seconds": seconds,
        "told": told,
    }


def run(**asked: Any) -> dict[str, Any]:
    asked = {"dropout": LearnerSettings().lora.dropout, "settings": {}, "gradient": None, **asked}
    command = [sys.executable, __file__, "--child", json.dumps(asked)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{asked}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def plan(found: dict[str, Any]) -> str:
    return f"{found['tokens']:5d} tokens{', again' if found['again'] else '       '}"


def peaks(model: str, limits: list[float], rows: int) -> None:
    print("method    limit GiB  plan                 held  predicted  peak MiB  ratio  of what was added")
    for method in ("sft", "tree-opo"):
        for limit in limits:
            found = run(model=model, method=method, limit=limit, rows=rows)
            line = f"{method:9s} {limit or 'none':>9}  {plan(found)}  {found['before']:5.0f}"
            if (predicted := found["predicted"]) is None:
                print(f"{line}          -  {found['peak']:8.0f}", flush=True)
                continue
            added = found["peak"] - found["before"]
            print(
                f"{line}  {predicted:9.0f}  {found['peak']:8.0f}  {predicted / found['peak']:5.2f}  "
                f"{(predicted - found['before']) / added:5.2f}",
                flush=True,
            )


def gradients(model: str, rows: int) -> None:
    """By way of settings, so that each rung is seen, and once by asking for what cannot be had."""
    ways: dict[str, tuple[float, dict[str, Any]]] = {
        "no limit": (0, {}),
        "planned": (3, {}),
        "planned, less": (2.3, {}),
        "2048 asked for, memory runs out": (3, {"microbatch_tokens": 2048, "gradient_checkpointing": False}),
    }
    with tempfile.TemporaryDirectory() as directory:
        whole = None
        print("limit GiB                                       plan                 ran out  distance")
        for name, (limit, settings) in ways.items():
            file = str(Path(directory) / "gradient.npy")
            found = run(
                model=model, method="tree-opo", limit=limit, rows=rows, dropout=0.0, settings=settings, gradient=file
            )
            gradient = np.load(file)
            whole = gradient if whole is None else whole
            distance = np.linalg.norm(gradient - whole) / np.linalg.norm(whole)
            print(f"{limit or 'none':>9}  {name:36s}  {plan(found)}  {found['ran_out']:7d}  {distance:.1e}", flush=True)
            for line in found["told"]:
                print(f"           {line}")


def freed(model: str, rows: int) -> None:
    print("freed blocks        peak MiB  CPU seconds")
    for name, settings in {"": {}, ", again": {"gradient_checkpointing": True}}.items():
        for way in (False, True):
            asked = {"microbatch_tokens": 512, "gradient_checkpointing": False, **settings}
            found = run(model=model, method="sft", limit=0, rows=rows, settings=asked, freed=way)
            said = f"{'given back' if way else 'kept'}{name}"
            print(f"{said:18s}  {found['peak']:8.0f}  {found['seconds']:11.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["peaks", "gradients", "freed"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--limits", type=float, nargs="+", default=[2.5, 3, 6, 12])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(json.loads(given.child))))
        return
    with tempfile.TemporaryDirectory() as directory:
        model = str(given.model.resolve() if given.model else random_model(Path(directory)))
        if "peaks" in given.parts:
            peaks(model, given.limits, given.rows)
        if "gradients" in given.parts:
            gradients(model, given.rows // 2)
        if "freed" in given.parts:
            freed(model, given.rows // 4)


if __name__ == "__main__":
    main()
