"""What the plug-in changes in an engine's process leaves the rest of it as it was."""

import subprocess
import sys

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
