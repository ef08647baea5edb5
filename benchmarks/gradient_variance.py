"""Which baseline should I use? Bias and variance of the policy gradient of every method, against the exact gradient.

    python benchmarks/gradient_variance.py [--trees 40] [--groups 4000] [--samples 8] [--seed 0] [--coupling 0]

Random prefix trees carry a small softmax policy with shared parameters, so V*(p) and the gradient of the mean success
rate over prefixes are known exactly. Every method sees the same groups of 8 samples. Per tree, with g the estimate
(1/N) sum_k a_k grad log pi(c_k | p_k) of one group and G the exact gradient:

scale       <E g, G> / |G|^2: how much of the gradient is left; the learning rate absorbs it
bias        |E g - scale G| / (scale |G|), in %: what points elsewhere, pooled over trees, sampling noise subtracted
noise       trace Cov(g) / (scale |G|)^2 relative to `flat`, in %: variance at equal progress
per sample  the same, times the samples a method spends: mc pays for its extra rollouts
satisfied   share of order constraints that hold, in %
variance    of the advantages within a group

The other columns are medians over trees. Bias below about 5 % is what sampling noise leaves: `flat` has none. Rows
"on chains" draw each group from one path, so they have their own gradient and their own flat.

`coupling` says how much of the score points from failures to successes. At 0 a completion differs from another in many
ways besides success, as texts do; V* then minimises the variance of the gradient as it does that of the advantages
(Lemma 3.2). With a large coupling the score itself predicts the reward, and the best baseline is no longer V*.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from treeopo.advantage import AdvantageBatch, AdvantageSettings, Outcomes, staged_advantages_batch

Array = np.ndarray[Any, Any]

C, D = 16, 24  # completions of a prefix, parameters
MAX_DEPTH, BRANCHING, NODES = 5, 3, 24
HISTORY = 64  # earlier samples of a tree, where a method keeps them

ROWS: dict[str, dict[str, Any]] = {
    "flat": {"method": "flat"},
    "flat on chains": {"method": "flat"},
    **{f"trace on chains, alpha {alpha}": {"method": "trace", "alpha": alpha} for alpha in (0.5, 1.0)},
    "grpo (z-scores)": {"method": "grpo"},
    **{
        f"{method}, alpha {alpha}": {"method": method, "alpha": alpha}
        for method in ("expectation", "optimistic", "pessimistic", "loo", "posterior")
        for alpha in (0.5, 1.0)
    },
    **{
        f"{method}, history, alpha {alpha}": {"method": method, "alpha": alpha, "scope": "history"}
        for method in ("expectation", "posterior")
        for alpha in (0.5, 1.0)
    },
    "mc, 8 rollouts, alpha 1.0": {"method": "mc", "alpha": 1.0},
    "true V*, alpha 0.5": {"method": "mc", "alpha": 0.5},
    "true V*, alpha 1.0": {"method": "mc", "alpha": 1.0},
    "qp-hard": {"method": "qp-hard", "solver": "exact"},
    "qp-convex, margins 0.01": {
        "method": "qp-convex",
        "solver": "exact",
        "margin_pair": 0.01,
        "margin_triplet": 0.01,
    },
    "qp-soft": {"method": "qp-soft", "solver": "exact"},
    "qp-convex of expectation": {"method": "qp-convex", "solver": "exact", "target": "expectation"},
}


@dataclass(frozen=True)
class World:
    """A tree with its policy: parent (P,), probability (P, C), reward (P, C), score grad log pi (P, C, D)."""

    parent: Array
    probability: Array
    reward: Array
    score: Array

    @property
    def value(self) -> Array:
        """V* (P,)."""
        return np.asarray((self.probability * self.reward).sum(axis=1))

    def gradient(self, share: Array) -> Array:
        """Exact gradient (D,) of the success rate of prefixes drawn by share (P,)."""
        return np.asarray(np.einsum("p,pc,pc,pcd->d", share, self.probability, self.reward, self.score))


def random_world(rng: np.random.Generator, coupling: float) -> World:
    """Deeper prefixes are easier: the log-odds of success rise along every path, with noise (§3.1)."""
    parent, depth, children = [-1], [0], [0]
    while len(parent) < NODES:
        p = int(rng.integers(len(parent)))
        if depth[p] < MAX_DEPTH and children[p] < BRANCHING:
            children[p] += 1
            parent, depth, children = [*parent, p], [*depth, depth[p] + 1], [*children, 0]
    log_odds = [rng.normal(-2.0, 0.7)]
    for p in parent[1:]:
        log_odds.append(log_odds[p] + rng.normal(0.7, 0.8))
    reward = np.zeros((NODES, C))
    reward[:, : C // 2] = 1.0
    feature = rng.normal(size=(NODES, C, D)) + coupling * rng.normal(size=D) * reward[:, :, None]
    logits = reward * np.array(log_odds)[:, None] + 0.3 * rng.normal(size=(NODES, C))
    probability = np.exp(logits)
    probability /= probability.sum(axis=1, keepdims=True)
    score = feature - np.einsum("pc,pcd->pd", probability, feature)[:, None]
    return World(np.array(parent), probability, reward, score)


def draw_nodes(world: World, chains: bool, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Array, Array]:
    """Start nodes (G, N) and their distribution (P,): uniform, or uniform on the path to a uniform leaf per group."""
    P = world.parent.size
    if not chains:
        return rng.integers(0, P, shape), np.full(P, 1.0 / P)
    paths = []
    for leaf in np.setdiff1d(np.arange(P), world.parent):
        path = [leaf]
        while world.parent[path[-1]] >= 0:
            path.append(world.parent[path[-1]])
        paths.append(np.array(path))
    share = np.zeros(P)
    for nodes in paths:
        share[nodes] += 1.0 / (len(paths) * nodes.size)
    chosen = rng.integers(0, len(paths), shape[0])
    return np.stack([rng.choice(paths[k], shape[1]) for k in chosen]), share


def advantages_of(
    world: World, name: str, node: Array, reward: Array, rng: np.random.Generator
) -> tuple[AdvantageBatch, int]:
    """Advantages of all groups, and the samples each group spends."""
    settings = AdvantageSettings(**ROWS[name])
    (G, N), P = node.shape, world.parent.size
    spent, rollouts, history = N, None, None
    if name.startswith("true"):
        rollouts = Outcomes(np.ones(G * N), world.value[node].ravel())
    elif settings.method == "mc":
        rollouts = Outcomes(np.full(G * N, 8.0), rng.binomial(8, world.value[node]).ravel().astype(float))
        spent = 9 * N
    if settings.scope == "history":
        total = rng.multinomial(HISTORY, np.full(P, 1.0 / P), G)
        history = Outcomes(total.ravel().astype(float), rng.binomial(total, world.value).ravel().astype(float))
    batch = staged_advantages_batch(
        np.tile(world.parent, G),
        np.arange(G + 1) * P,
        node.ravel(),
        reward.ravel(),
        np.arange(G + 1) * N,
        settings,
        rollouts=rollouts,
        history=history,
    )
    return batch, spent


def measure(world: World, name: str, shape: tuple[int, int], seed: int) -> dict[str, float]:
    """One row on one tree; the same seed gives every row the same samples."""
    rng = np.random.default_rng(seed)
    node, share = draw_nodes(world, "on chains" in name, shape, rng)
    cumulative = world.probability.cumsum(axis=1)[node]
    choice = (rng.random((*shape, 1)) > cumulative).sum(axis=-1).clip(max=C - 1)
    batch, spent = advantages_of(world, name, node, world.reward[node, choice], rng)
    estimate = np.einsum("gn,gnd->gd", batch.advantage.reshape(shape), world.score[node, choice]) / shape[1]
    exact = world.gradient(share)
    size = float(exact @ exact)
    mean, covariance_trace = estimate.mean(axis=0), float(estimate.var(axis=0, ddof=1).sum())
    scale = float(mean @ exact) / size
    off = mean - scale * exact
    return {
        "scale": scale,
        "bias_squared": float(off @ off) - covariance_trace / shape[0],
        "signal": scale * scale * size,
        "noise": covariance_trace / (scale * scale * size),
        "spent": float(spent),
        "satisfied": 100.0 * float(np.nanmean(batch.satisfaction)),
        "variance": float(batch.variance.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, value in (("trees", 40), ("groups", 4000), ("samples", 8), ("seed", 0)):
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--coupling", type=float, default=0.0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    worlds = [random_world(rng, options.coupling) for _ in range(options.trees)]
    shape = (options.groups, options.samples)
    table = {name: [measure(world, name, shape, k) for k, world in enumerate(worlds)] for name in ROWS}
    print(
        f"{options.trees} trees of {NODES} prefixes, {options.groups:,} groups of {options.samples} samples each, "
        f"coupling {options.coupling:g}\n"
    )
    print("| method | scale | bias % | noise % of flat | per sample % | satisfied % | variance |")
    print("|---|---|---|---|---|---|---|")
    for name, rows in table.items():
        base = table["flat on chains" if "on chains" in name else "flat"]
        relative = [100.0 * row["noise"] / flat["noise"] for row, flat in zip(rows, base, strict=True)]
        spent = rows[0]["spent"] / options.samples
        median = {key: float(np.median([row[key] for row in rows])) for key in rows[0]}
        bias = 100.0 * np.sqrt(max(0.0, sum(row["bias_squared"] for row in rows)) / sum(row["signal"] for row in rows))
        print(
            f"| {name} | {median['scale']:.2f} | {bias:.1f} | {np.median(relative):.0f} "
            f"| {spent * np.median(relative):.0f} | {median['satisfied']:.1f} | {median['variance']:.3f} |"
        )


if __name__ == "__main__":
    main()
