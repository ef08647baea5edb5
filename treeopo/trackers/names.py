"""The names of metrics in version 0.1, which had no namespaces: its runs are read under today's.

docs/metrics.md lists today's names.
"""

_ONE_BY_ONE = {
    "reward": "rollout/reward",
    "informative_share": "rollout/informative_share",
    "prefix_tokens_mean": "rollout/prefix_tokens_mean",
    "truncated_share": "rollout/truncated_share",
    "rollout_tokens": "rollout/tokens",
    "rollout_tokens_per_second": "engine/tokens_per_second",
    "teacher_kl": "rollout/teacher_kl",
    "teacher_return": "rollout/teacher_return",
    "gain_mean": "advantage/gain_mean",
    "gain_std": "advantage/gain_std",
    "advantage_variance": "advantage/variance",
    "constraints": "advantage/constraints",
    "dropped_constraints": "advantage/constraints_dropped",
    "constraint_satisfaction": "advantage/constraint_satisfaction",
    "constraint_satisfaction_std": "advantage/constraint_satisfaction_std",
    "solver_fallbacks": "advantage/solver_fallbacks",
    "train_tokens": "learner/tokens",
    "train_tokens_per_second": "learner/tokens_per_second",
    "learner_peak_mib": "learner/peak_mib",
    "seconds_rollout": "pipeline/seconds_batch",
    **{
        name: f"learner/{name}"
        for name in (
            "loss",
            "grad_norm",
            "learning_rate",
            "nonfinite_steps",
            "entropy",
            "padding_share",
            "shared_share",
            "mismatch_kl",
            "mismatch_kl_k1",
            "log_ratio_max",
            "log_ratio_mean",
            "ess_share",
            "ess_share_sequences",
            "weight_mean",
            "limited_share",
            "clip_share",
            "kl",
            "kl_loss",
            "kl_grad_norm",
            "kl_learning_rate",
            "solution_tokens",
            "critic_loss",
            "critic_grad_norm",
            "critic_learning_rate",
            "critic_warmup",
            "critic_target_mean",
            "critic_explained",
            "value_error",
        )
    },
}
_BY_BEGINNING = {
    "staleness_": "rollout/staleness_",
    "seconds_": "pipeline/seconds_",
    "engine_": "engine/",
    "grader_": "grader/",
    "behaviour_": "behaviour/",
    "eval_": "eval/",
}


def current_name(name: str) -> str:
    """Today's name of a metric; any other name (`step`, one of today, one of a user's own) as it is."""
    if name in _ONE_BY_ONE:
        return _ONE_BY_ONE[name]
    for beginning, namespace in _BY_BEGINNING.items():
        if name.startswith(beginning) and "/" not in name:
            return namespace + name.removeprefix(beginning)
    return name
