"""Inference engines (`treeopo.ports.Engine`): vLLM in a child process, vLLM servers by URL, and a scripted fake."""
