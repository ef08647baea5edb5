"""treeopo: train reasoning models on Monte Carlo search trees (Tree-OPO, Huang et al. 2025)."""

__version__ = "0.1.0"
