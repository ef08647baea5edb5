"""Names of settings that were meant: near in spelling, of the same last part, or what TRL and others call them."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

SYNONYMS: Final = {
    "adam_weight_decay": "learner.optimizer.weight_decay",
    "beta": "kl.beta",
    "chat_template_kwargs": "prompt.chat_arguments",
    "clip_ratio_high": "learner.clip_high",
    "clip_ratio_low": "learner.clip_low",
    "dataset_name": "store",
    "epsilon": "learner.clip_low",
    "epsilon_high": "learner.clip_high",
    "eval_steps": "evaluation.every",
    "gradient_accumulation_steps": "learner.microbatch_tokens",
    "importance_sampling_level": "learner.correction",
    "lora_alpha": "learner.lora.alpha",
    "lora_dropout": "learner.lora.dropout",
    "lora_r": "learner.lora.rank",
    "loss_agg_mode": "learner.aggregation",
    "loss_type": "learner.aggregation",
    "lr": "learner.optimizer.learning_rate",
    "max_completion_length": "rollout.max_sequence_tokens",
    "max_prompt_length": "rollout.max_prompt_tokens",
    "max_response_length": "rollout.max_sequence_tokens",
    "max_steps": "steps",
    "model_name_or_path": "student",
    "num_generations": "rollout.group_size",
    "num_train_epochs": "steps",
    "off_policy_max_steps": "rollout.max_staleness",
    "output_dir": "output",
    "per_device_train_batch_size": "rollout.batch_size",
    "r": "learner.lora.rank",
    "report_to": "trackers",
    "save_steps": "checkpoint_every",
    "save_total_limit": "checkpoints_kept",
    "scale_rewards": "advantage.standardize",
    "train_batch_size": "rollout.batch_size",
    "vllm_gpu_memory_utilization": "engine.gpu_memory_share",
    "vllm_server_base_url": "engine.urls",
    "warmup": "learner.optimizer.warmup_steps",
}
"""The words of TRL, verl, PEFT and vLLM, and the settings that do that work here."""

_MOST = 3


def meant(name: str, known: Sequence[str]) -> list[str]:
    """Up to three of the dotted names `known` that `name`, which is none of them, may stand for; the likeliest first.

    What counts is the last part: a synonym, the same under another section, or one spelt nearly so.
    """
    last = name.rpartition(".")[2]
    parts = {each: each.rpartition(".")[2] for each in known}
    near = get_close_matches(last, set(parts.values()), _MOST, 0.75)
    near += [part for part in parts.values() if part.startswith(last) and len(last) > 3]
    ranked = [each for part in (last, *near) for each in known if parts[each] == part]
    synonym = SYNONYMS.get(last)
    return list(dict.fromkeys([synonym, *ranked] if synonym in parts else ranked))[:_MOST]
