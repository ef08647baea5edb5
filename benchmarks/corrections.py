"""Which correction should I use? Bias and noise of the policy gradient under each, against the exact gradient.

    python benchmarks/corrections.py [--samples 100000] [--vocabulary 8] [--seed 0]

The policy is a softmax per position over a small vocabulary; a completion of T tokens is right if it has more of token
0 than expected, so its exact gradient is a sum over token counts. Completions come from a behaviour policy whose logits
are off by normal noise, scaled so that a token's log-ratio has the standard deviation `spread`: what a stale policy and
an engine of another precision amount to. Positions are independent, which flatters the corrections by token: they
leave out how the tokens around became likelier (tests/unit/test_policy_gradient_exact.py has dependent ones).

Advantages are rewards minus their mean. With g the estimate of one completion and G the exact gradient:

scale    <E g, G> / |G|^2: how much of the gradient is left; the learning rate absorbs it
bias     |E g - scale G| / (scale |G|), in %: what points elsewhere; sampling noise is subtracted by halves
noise    trace Cov(g) / (scale |G|)^2 relative to on-policy samples, whose own figure is printed first: how many times
         the samples for the same progress
ess      effective share of samples under the ratios that are judged, in %
limited  share of tokens whose ratio was truncated or masked, in %
"""

import argparse
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from treeopo.learner.losses import Forward
from treeopo.learner.losses.corrections import PRESETS, correct
from treeopo.learner.settings import Correction, LearnerSettings

CELLS = [(16, 0.01), (16, 0.1), (64, 0.03), (256, 0.01), (256, 0.03), (256, 0.1)]
"""(tokens of a completion, standard deviation of a token's log-ratio)"""


class World:
    """pi_TV, its exact chance of success and gradient (T, V); behaviour_TV is `spread` away from it."""

    def __init__(self, tokens: int, vocabulary: int, spread: float, generator: torch.Generator) -> None:
        shape = (tokens, vocabulary)
        logits_TV = torch.randn(shape, generator=generator, dtype=torch.float64)
        noise_TV = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.pi_TV = logits_TV.softmax(-1)
        centred_TV = noise_TV - (self.pi_TV * noise_TV).sum(-1, keepdim=True)
        noise_TV *= spread / (self.pi_TV * centred_TV.square()).sum(-1).mean().sqrt()
        self.behaviour_TV = (logits_TV + noise_TV).softmax(-1)
        self.threshold = float(self.pi_TV[:, 0].sum())
        chance_T = self.pi_TV[:, 0]
        with_T, without_T = self._chances_given(chance_T)
        self.chance = float(chance_T[0] * with_T[0] + (1 - chance_T[0]) * without_T[0])
        given_TV = without_T[:, None].repeat(1, vocabulary)
        given_TV[:, 0] = with_T
        self.gradient_TV = self.pi_TV * (given_TV - self.chance)

    def _chances_given(self, chance_T: Tensor) -> tuple[Tensor, Tensor]:
        """P(right | position t is token 0), and P(right | it is not): the others' counts, position t left out."""
        with_, without = [], []
        for left_out in range(len(chance_T)):
            count = torch.zeros(len(chance_T) + 1, dtype=torch.float64)
            count[0] = 1
            for t, p in enumerate(chance_T.tolist()):
                if t != left_out:
                    count[1:] = count[1:] * (1 - p) + count[:-1] * p
                    count[0] *= 1 - p
            numbers = torch.arange(len(count))
            with_.append(count[numbers + 1 > self.threshold].sum())
            without.append(count[numbers > self.threshold].sum())
        return torch.stack(with_), torch.stack(without)


def measure(
    world: World, correction: Correction, samples: int, generator: torch.Generator, on_policy: bool
) -> dict[str, Any]:
    """E g by halves, E |g|^2 and the shares, from `samples` completions in chunks."""
    sampler_TV = world.pi_TV if on_policy else world.behaviour_TV
    tokens, vocabulary = sampler_TV.shape
    halves, square, limited, judged, judged_square = (
        torch.zeros(2, tokens, vocabulary, dtype=torch.float64),
        0.0,
        0.0,
        0.0,
        0.0,
    )
    chunk = max(2, 2**19 // tokens)
    drawn = 0
    while drawn < samples:
        ids_NT = torch.multinomial(sampler_TV, chunk, replacement=True, generator=generator).T
        position_NT = torch.arange(tokens).expand(chunk, tokens)
        weights = _weights(world.pi_TV[position_NT, ids_NT], sampler_TV[position_NT, ids_NT], correction)
        right_N = ((ids_NT == 0).sum(1) > world.threshold).double()
        coefficient_NT = (right_N - world.chance)[:, None] * weights.weight_C.view(chunk, tokens)
        for half, (ids, coefficient) in enumerate(zip(ids_NT.chunk(2), coefficient_NT.chunk(2), strict=True)):
            halves[half].view(-1).index_add_(
                0, (ids + torch.arange(tokens) * vocabulary).flatten(), coefficient.flatten()
            )
            halves[half] -= world.pi_TV * coefficient.sum(0)[:, None]
        chosen_NT = world.pi_TV[position_NT, ids_NT]
        square += float((coefficient_NT.square() * (1 - 2 * chosen_NT + world.pi_TV.square().sum(-1))).sum())
        limited += float(weights.limited_C.sum())
        judged += float(weights.judged_C.sum())
        judged_square += float(weights.judged_C.square().sum())
        drawn += chunk
    first, second = halves / (drawn / 2)
    truth = world.gradient_TV
    scale = float(((first + second) / 2 * truth).sum() / truth.square().sum())
    off = ((first - scale * truth) * (second - scale * truth)).sum().clamp(min=0).sqrt() / (scale * truth.norm())
    noise = (square / drawn - float((first * second).sum())) / (scale * truth.norm()) ** 2
    ess = judged**2 / (drawn * tokens * judged_square)
    return {
        "scale": scale,
        "bias": 100 * float(off),
        "noise": float(noise),
        "ess": 100 * ess,
        "limited": 100 * limited / drawn / tokens,
    }


def _weights(pi_NT: Tensor, behaviour_NT: Tensor, correction: Correction) -> Any:
    """The shipped correction over N completions of T tokens."""
    rows, tokens = pi_NT.shape
    micro = SimpleNamespace(
        behaviour_C=behaviour_NT.log().flatten(),
        row_C=torch.arange(rows).repeat_interleave(tokens),
        length_C=torch.full((rows * tokens,), float(tokens)),
    )
    log_pi_C = pi_NT.log().flatten()
    forward = Forward(log_pi_C, log_pi_C, torch.empty(0), nn.Identity())
    return correct(micro, forward, correction, *LearnerSettings(correction=correction).correction_bounds)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--vocabulary", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| tokens | spread | correction | scale | bias % | noise | ess % | limited % |")
    print("|---|---|---|---|---|---|---|---|")
    for tokens, spread in CELLS:
        generator = torch.Generator().manual_seed(arguments.seed)
        world = World(tokens, arguments.vocabulary, spread, generator)
        reference = measure(world, "none", arguments.samples, generator, on_policy=True)["noise"]
        print(f"| {tokens} | {spread} | (on-policy) | 1 | 0 | 1 = {reference:.0f} / completion | 100 | 0 |")
        for correction in PRESETS:
            found = measure(world, correction, arguments.samples, generator, on_policy=False)
            print(
                f"| {tokens} | {spread} | {correction} | {found['scale']:.2f} | {found['bias']:.1f} | "
                f"{found['noise'] / reference:.2f} | {found['ess']:.1f} | {found['limited']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
