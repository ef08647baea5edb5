"""What the plug-in changes in an engine's process leaves the rest of it as it was."""

import os
import subprocess
import sys

import pytest

from treeopo.engines import vllm_plugin

PROGRAM = """
import llvmlite.binding.ffi as ffi
import numba
from treeopo.engines.vllm_plugin import _tame_llvmlite
assert hasattr(ffi.lib, "__dict__"), "llvmlite no longer claims every name: drop the patch"
_tame_llvmlite()
assert not hasattr(ffi.lib, "__dict__")
assert numba.njit(lambda x: x + 1)(1) == 2
"""


def test_llvmlite_no_longer_claims_every_name_and_numba_still_compiles() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_trainer_that_is_dead_is_gone_whether_or_not_somebody_asked_after_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as trainer:
        assert not vllm_plugin._is_gone(trainer.pid)
        trainer.kill()
        os.waitid(os.P_PID, trainer.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
        assert vllm_plugin._is_gone(trainer.pid)
        trainer.wait()
        assert vllm_plugin._is_gone(trainer.pid)
