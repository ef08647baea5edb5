"""How fast the advantages are: both sides of every comparison in one run, after compilation, as ratios.

    python benchmarks/advantages.py                 everything, some minutes
    python benchmarks/advantages.py statistics qp dense batch compile

statistics  whole-tree counts against numpy by depth level (levels found, or given for free) and against touching the
            arrays once
qp          one group of 8: exact, SLSQP, OSQP and Clarabel on the same program
batch       1,000 groups of 8 through staged_advantages_batch, exact and SLSQP
dense       1,024 samples, hundreds of thousands of constraints
compile     the first call ever, and the first call of a process with numba's cache on disk

OSQP and Clarabel are development dependencies; without them their columns are left out.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np

from treeopo.advantage import (
    AdvantageMethod,
    AdvantageSettings,
    Solver,
    kernels,
    staged_advantages,
    staged_advantages_batch,
)
from treeopo.advantage.qp import Program, solve, solve_exactly
from treeopo.advantage.slsqp import minimise
from treeopo.tree import subtree_statistics

Array = np.ndarray[Any, Any]
Sides = dict[str, Callable[[], Any]]


def race(sides: Sides, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each side (all are single-threaded), run in turn so that a busy machine is fair to all.

    A side that takes less than 2 ms is repeated within each measurement.
    """

    def seconds(side: Callable[[], object], loops: int) -> float:
        start = time.thread_time()
        for _ in range(loops):
            side()
        return (time.thread_time() - start) / loops

    for side in sides.values():
        side()
    loops = {name: max(1, int(2e-3 / max(1e-7, seconds(side, 3)))) for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            times[name].append(seconds(side, loops[name]))
    return {name: median(each) for name, each in times.items()}


def report(title: str, times: dict[str, float], base: str) -> None:
    """Print every side's median and how many times the base's it is."""
    print(f"\n{title}")
    for name, seconds in times.items():
        print(f"  {name:<28}{seconds * 1e3:12.4f} ms   {seconds / times[base]:10.2f} x {base}")


# --- whole-tree statistics ---------------------------------------------------------------------------------------


def problem_forest(P: int, rng: np.random.Generator, size: int = 64) -> Array:
    """Trees of `size` nodes one after another, as the tree store keeps them."""
    position = np.arange(P) % size
    parent = np.arange(P) - position + (rng.random(P) * position).astype(np.int64)
    return np.where(position == 0, -1, parent).astype(np.int32)


def random_tree(P: int, rng: np.random.Generator) -> Array:
    """One tree, every parent uniform among earlier nodes: nothing is near anything in memory."""
    parent = (rng.random(P) * np.arange(P)).astype(np.int32)
    parent[0] = -1
    return parent


def levels_of(parent: Array) -> list[Array]:
    """Nodes by depth, deepest first; found by pointer doubling."""
    depth, above = np.zeros(parent.size, np.int32), parent.copy()
    depth[above >= 0] = 1
    while (above >= 0).any():
        live = above >= 0
        depth[live] += depth[above[live]]
        above[live] = above[above[live]]
    order = np.argsort(depth, kind="stable")
    bounds = np.searchsorted(depth[order], np.arange(1, depth.max() + 1))
    return np.split(order, bounds)[:0:-1]


def by_all_levels(parent: Array, total: Array, success: Array) -> tuple[Array, ...]:
    return by_level(parent, total, success, levels_of(parent))


def by_level(parent: Array, total: Array, success: Array, levels: list[Array]) -> tuple[Array, ...]:
    total, success = total.copy(), success.copy()
    for nodes in levels:
        np.add.at(total, parent[nodes], total[nodes])
        np.add.at(success, parent[nodes], success[nodes])
    return total, success, success > 0, success == total


def touch_once(parent: Array, total: Array, success: Array) -> tuple[Array, ...]:
    """Read the three inputs and write the four outputs, once each."""
    return parent.max(), total.copy(), success.copy(), np.ones(parent.size, np.bool_), np.ones(parent.size, np.bool_)


def statistics() -> None:
    rng = np.random.default_rng(0)
    for shape in (problem_forest, random_tree):
        for P in (10**5, 10**6, 10**7):
            parent = shape(P, rng)
            total = rng.integers(0, 3, P).astype(np.int32)
            success = rng.binomial(total, 0.5).astype(np.int32)
            levels = levels_of(parent)
            sides: Sides = {
                "treeopo": partial(subtree_statistics, parent, total, success),
                "numpy by level": partial(by_all_levels, parent, total, success),
                "numpy, levels given": partial(by_level, parent, total, success, levels),
                "touch every array once": partial(touch_once, parent, total, success),
            }
            ours, theirs = sides["treeopo"](), sides["numpy by level"]()
            assert np.array_equal(ours.success, theirs[1])
            times = race(sides, repeats=5 if P == 10**7 else 15)
            report(
                f"statistics, {shape.__name__.replace('_', ' ')}, {P:,} nodes, {len(levels)} levels", times, "treeopo"
            )
            print(f"  treeopo / touch once: {times['treeopo'] / times['touch every array once']:.2f}")


# --- programs ------------------------------------------------------------------------------------------------------


def random_group(rng: np.random.Generator, P: int, N: int) -> tuple[list[int], Array, Array]:
    """A group with at least one pair and one triplet, as a program that margins change needs."""
    while True:
        parent = [-1, *(int(rng.integers(0, p)) for p in range(1, P))]
        node, reward = rng.integers(0, P, N), rng.integers(0, 2, N)
        order = staged_advantages(parent, node, reward, "flat").order
        if len(set(reward[order[:, 1]].tolist())) == 2:
            return parent, node, reward


def osqp_solver(target: Array, order: Array, margin: Array) -> Callable[[], Array]:
    """qp-convex without its ball (inactive here), set up once; the call is update and solve."""
    import osqp
    from scipy import sparse

    solver = osqp.OSQP()
    rows = _conditions(target.size, order)
    low = np.r_[0.0, margin]
    high = np.r_[0.0, np.full(margin.size, np.inf)]
    options = {"verbose": False, "eps_abs": 1e-9, "eps_rel": 1e-9, "polishing": True, "max_iter": 100_000}
    solver.setup(sparse.csc_matrix(2.0 * np.eye(target.size)), -2.0 * target, rows, low, high, **options)

    def solve() -> Array:
        solver.update(q=-2.0 * target)
        return np.asarray(solver.solve().x)

    return solve


def clarabel_solver(target: Array, order: Array, margin: Array) -> Callable[[], Array]:
    """The same program by an interior-point method."""
    import clarabel
    from scipy import sparse

    square = sparse.csc_matrix(2.0 * np.eye(target.size))
    rows = _conditions(target.size, order)
    rows = sparse.vstack([rows[:1], -rows[1:]]).tocsc()
    bounds = np.r_[0.0, -margin]
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(margin.size)]
    options = clarabel.DefaultSettings()
    options.verbose = False
    return lambda: np.asarray(clarabel.DefaultSolver(square, -2.0 * target, rows, bounds, cones, options).solve().x)


def _conditions(N: int, order: Array) -> Any:
    from scipy import sparse

    E = len(order)
    edge = np.repeat(np.arange(1, E + 1), 2)
    ones = sparse.csc_matrix(np.ones((1, N)))
    order_rows = sparse.csc_matrix((np.tile([-1.0, 1.0], E), (edge - 1, order.ravel())), shape=(E, N))
    return sparse.vstack([ones, order_rows]).tocsc()


def program_of(parent: Any, node: Array, reward: Array, pair: float, triplet: float) -> tuple[Array, Array, Array]:
    """(centred rewards, order, margins) of a group."""
    flat = staged_advantages(parent, node, reward, "flat")
    margin = np.where(reward[flat.order[:, 1]] == 1, pair, triplet)
    return flat.advantage, flat.order, margin


def convex_sides(target: Array, order: Array, margin: Array) -> Sides:
    sides: Sides = {"exact": lambda: solve_exactly(AdvantageMethod.QP_CONVEX, target, order, margin, 1.0)[1]}
    if find_spec("osqp"):
        sides["OSQP"] = osqp_solver(target, order, margin)
    if find_spec("clarabel"):
        sides["Clarabel"] = clarabel_solver(target, order, margin)
    for name, side in sides.items():
        assert np.allclose(side(), sides["exact"](), atol=1e-5), name
    return sides


def qp() -> None:
    rng = np.random.default_rng(1)
    group = random_group(rng, 16, 8)
    target, order, margin = program_of(*group, 1e-2, 1e-2)
    sides = convex_sides(target, order, margin)
    sides["SLSQP"] = lambda: minimise(AdvantageMethod.QP_CONVEX, target, order, margin, 1.0)
    report(f"one program, qp-convex, N = 8, E = {len(order)}, margins 0.01", race(sides, 25), "exact")
    for method in (AdvantageMethod.QP_HARD, AdvantageMethod.QP_SOFT):
        both: Sides = {
            "exact": partial(solve_exactly, method, target, order, margin, 1.0),
            "SLSQP": partial(minimise, method, target, order, margin, 1.0),
        }
        report(f"one program, {method}, N = 8, E = {len(order)}, margins 0.01", race(both, 25), "exact")
    front: Sides = {
        "exact": lambda: staged_advantages(*group, "qp-hard", solver="exact"),
        "SLSQP": lambda: staged_advantages(*group, "qp-hard"),
        "expectation": lambda: staged_advantages(*group, "expectation"),
    }
    report("the same group through staged_advantages, qp-hard, checks included", race(front, 25), "exact")


def batch() -> None:
    rng = np.random.default_rng(2)
    groups = [random_group(rng, 24, 8) for _ in range(1000)]
    parents, nodes, rewards = zip(*groups, strict=True)
    arrays = (
        np.concatenate(parents),
        np.cumsum([0, *map(len, parents)]),
        np.concatenate(nodes),
        np.concatenate(rewards),
        np.cumsum([0, *map(len, nodes)]),
    )

    def side(**chosen: Any) -> Callable[[], object]:
        return lambda: staged_advantages_batch(*arrays, AdvantageSettings(**chosen))

    for method in ("qp-hard", "qp-convex", "qp-soft"):
        chosen: dict[str, Any] = {"method": method, "margin_pair": 1e-2, "margin_triplet": 1e-2}
        sides = {"exact": side(solver="exact", **chosen), "SLSQP": side(**chosen), "expectation": side()}
        report(f"1,000 groups of 8, {method}, margins 0.01, checks included", race(sides, 5), "exact")
        flat = staged_advantages_batch(*arrays, AdvantageSettings(method=AdvantageMethod.FLAT))
        margin = np.full(len(flat.order), 1e-2)
        program = Program(flat.advantage, arrays[-1], flat.order, flat.order_offset, margin)
        alone: Sides = {
            solver: partial(solve, program, AdvantageSettings(solver=Solver(solver), **chosen))
            for solver in ("exact", "slsqp")
        }
        report(f"1,000 groups of 8, {method}, the solver alone", race(alone, 5), "exact")


def dense() -> None:
    rng = np.random.default_rng(3)
    P, N = 256, 1024
    parent, node, reward = np.arange(-1, P - 1), rng.integers(0, P, N), rng.integers(0, 2, N)
    for title, pair in (("rewards, margin 0.01", 0.01), ("rewards, margin 1.2 (every constraint broken)", 1.2)):
        target, order, margin = program_of(parent, node, reward, pair, 1e-2)
        dense_program(f"chain, {title}", target, order, margin)
    half = N // 2
    order = np.stack(np.meshgrid(np.arange(half), np.arange(half, N), indexing="ij"), axis=-1).reshape(-1, 2)
    target = rng.normal(size=N)
    dense_program(
        "complete bipartite, normal targets", target - target.mean(), order.astype(np.int32), np.zeros(half**2)
    )


def dense_program(title: str, target: Array, order: Array, margin: Array) -> None:
    sides: Sides = {
        f"exact {method}": partial(solve_exactly, method, target, order, margin, 1.0)
        for method in (AdvantageMethod.QP_CONVEX, AdvantageMethod.QP_HARD, AdvantageMethod.QP_SOFT)
    }
    sides["satisfaction alone"] = lambda: kernels.satisfied_share(
        target, np.array([0, target.size]), order, np.array([0, len(order)]), margin, 1e-9
    )
    statuses = [int(side()[0]) for side in list(sides.values())[:3]]
    report(
        f"dense, {title}: N = {target.size}, E = {len(order):,}, statuses {statuses}", race(sides, 7), "exact qp-convex"
    )


# --- compilation -----------------------------------------------------------------------------------------------------


def compile_time() -> None:
    code = (
        "from time import thread_time as now; start = now(); import treeopo.advantage as a; loaded = now();"
        "a.staged_advantages([-1, 0], [0, 1], [0, 1], 'expectation'); heuristic = now();"
        "a.staged_advantages([-1, 0], [0, 1], [0, 1], 'qp-hard', solver='exact'); end = now();"
        "print(loaded - start, heuristic - loaded, end - heuristic)"
    )
    with tempfile.TemporaryDirectory() as cache:
        for title in ("first call ever (compiling)", "first call of a process (cached)"):
            run = [sys.executable, "-c", code]
            out = subprocess.run(
                run, env={**os.environ, "NUMBA_CACHE_DIR": cache}, capture_output=True, text=True, check=True
            )
            imported, heuristic, program = map(float, out.stdout.split())
            print(
                f"\n{title}: import {imported:.3f} s, expectation {heuristic:.2f} s, then qp-hard exact {program:.2f} s"
            )


SECTIONS = {"statistics": statistics, "qp": qp, "batch": batch, "dense": dense, "compile": compile_time}

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
