"""Settings: the paper's values by default, and what importing them costs."""

import subprocess
import sys

import pytest

from treeopo.advantage import AdvantageMethod, AdvantageSettings, Scope, Solver


def test_the_defaults_are_the_papers():
    settings = AdvantageSettings()
    assert settings.method is AdvantageMethod.EXPECTATION
    assert settings.alpha == 0.5
    assert settings.scope is Scope.GROUP
    assert settings.solver is Solver.SLSQP
    assert settings.penalty == 1.0


@pytest.mark.parametrize(
    ("method", "margins"), [("qp-hard", (0.0, 1e-2)), ("qp-soft", (1e-3, 1e-3)), ("qp-convex", (0.0, 0.0))]
)
def test_margins_default_to_the_methods_own(method, margins):
    assert AdvantageSettings(method=method).margins == margins
    assert AdvantageSettings(method=method, margin_pair=0.5).margins == (0.5, margins[1])


def test_a_program_on_rewards_starts_from_the_flat_baseline():
    assert AdvantageSettings(method=AdvantageMethod.QP_HARD).baseline is AdvantageMethod.FLAT
    assert AdvantageSettings(method=AdvantageMethod.QP_HARD, target="loo").baseline is AdvantageMethod.LOO


def test_importing_the_package_loads_neither_numba_nor_scipy_nor_anything_heavier():
    heavy = "{'numba', 'scipy', 'torch', 'vllm', 'zarr', 'asyncio'}"
    code = f"import sys, treeopo.advantage, treeopo.tree; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_importing_the_kernels_compiles_nothing():
    code = (
        "import treeopo.tree.kernels as t, treeopo.advantage.kernels as k, treeopo.advantage.exact as e;"
        "print(sum(len(f.signatures) for m in (t, k, e) for f in vars(m).values() if hasattr(f, 'signatures')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0\n"


def test_slsqp_alone_loads_scipy():
    code = (
        "import sys; from treeopo.advantage import staged_advantages as s;"
        "s([-1], [0, 0], [0, 1], 'qp-hard', solver='exact'); print('scipy.optimize' in sys.modules);"
        "s([-1], [0, 0], [0, 1], 'qp-hard', solver='slsqp'); print('scipy.optimize' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]
