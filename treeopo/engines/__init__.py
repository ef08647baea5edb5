"""Adapters of the `Engine` port: vLLM in this process's care, and a scripted fake for tests and simulations."""
