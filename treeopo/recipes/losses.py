"""The losses of a method, by the names in `treeopo.methods`."""

from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from treeopo.config import TrainConfig
from treeopo.methods import LossName, find_method

if TYPE_CHECKING:
    from treeopo.learner.losses import Loss, Losses, SeparateLoss
    from treeopo.learner.policy import LoraPolicy


def make_losses(config: TrainConfig, teacher: str | None, policy: "LoraPolicy") -> "Losses":
    """What `policy` descends under `config.method`; `teacher` is a model's name where the method needs one.

    Raises:
        ModelError: the teacher cannot be loaded beside the policy.
    """
    method = find_method(config.method)
    losses = [loss for name in method.losses for loss in _losses(name, config, teacher, policy)]
    return [*losses, *_prefix_likelihood(config)]


def _prefix_likelihood(config: TrainConfig) -> "Losses":
    """Beside a policy gradient; `TrainConfig` refuses it for methods without one."""
    from treeopo.learner.losses.prefix_likelihood import PrefixLikelihood

    weight = config.learner.prefix_loss
    return [PrefixLikelihood(weight)] if weight else []


def _losses(name: LossName, config: TrainConfig, teacher: str | None, policy: "LoraPolicy") -> "Losses":
    match name:
        case LossName.POLICY_GRADIENT:
            from treeopo.learner.losses.policy_gradient import PolicyGradient

            return [PolicyGradient(config.learner)]
        case LossName.CROSS_ENTROPY:
            from treeopo.learner.losses.cross_entropy import CrossEntropy

            return [CrossEntropy()]
        case LossName.DIRECT_VALUE:
            from treeopo.learner.losses.direct_value import DirectValue

            return [DirectValue(config.dvo.beta)]
        case LossName.KL:
            return [_kl(config, teacher, policy)]
        case LossName.ACTOR_CRITIC:
            return _actor_critic(config, policy)
        case _:
            assert_never(name)


def _kl(config: TrainConfig, teacher: str | None, policy: "LoraPolicy") -> "Loss | SeparateLoss":
    from treeopo.learner.losses import SeparateLoss
    from treeopo.learner.losses.kl import KlToTeacher
    from treeopo.learner.teacher import TeacherModel

    assert teacher is not None, "a method with a KL loss needs a teacher"
    kl = config.kl
    in_learner: TeacherModel | None
    match kl.estimate:
        case "sampled":
            in_learner = None
        case "full":
            in_learner = TeacherModel(teacher, config.learner, config.engine.trust_remote_code)
        case _:
            assert_never(kl.estimate)
    loss = KlToTeacher(kl, config.learner, config.rollout.temperature, in_learner)
    match kl.optimizer:
        case "summed":
            return loss
        case "separate":
            optimizer = replace(config.learner.optimizer, learning_rate=kl.learning_rate)
            return SeparateLoss("kl", loss, optimizer, policy.trainable)
        case _:
            assert_never(kl.optimizer)


def _actor_critic(config: TrainConfig, policy: "LoraPolicy") -> "Losses":
    from treeopo.learner.critic import make_critic
    from treeopo.learner.losses import SeparateLoss
    from treeopo.learner.losses.actor_critic import Actor, ValueRegression
    from treeopo.learner.losses.policy_gradient import PolicyGradient

    critic = make_critic(policy, config.critic)
    optimizer = replace(config.learner.optimizer, learning_rate=config.critic.learning_rate)
    regression = ValueRegression(critic, config.critic)
    return [
        Actor(PolicyGradient(config.learner), critic, config.critic),
        SeparateLoss("critic", regression, optimizer, list(critic.parameters()), critic),
    ]
