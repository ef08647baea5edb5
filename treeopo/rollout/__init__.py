"""Prefixes in, training batches out: the counter-based sampler, version accounting and the asynchronous pipeline."""
