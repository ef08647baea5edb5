"""The tree store: Monte Carlo search trees in one Zarr group (numpy and zarr only)."""
