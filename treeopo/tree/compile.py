"""One way to compile a kernel: lazily, cached on disk, without the global interpreter lock."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compile `function` with numba on its first call.

    numba's cache does not look through imports: kernels that call one another stay in one file.
    """
    return cast(F, numba.njit(cache=True, nogil=True)(function))
