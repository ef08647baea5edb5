"""Seeds by counter: random access into a run's randomness, no generator state to carry or to restore."""

from hashlib import blake2b


def derive_seed(*counters: int) -> int:
    """A 63-bit seed that is a pure function of its counters."""
    return int.from_bytes(blake2b(repr(counters).encode(), digest_size=8).digest()) >> 1
