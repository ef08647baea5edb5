"""The embedded default: a tokenizer, a teacher and a student of a million parameters, made from a seed on a CPU.

    words ─▶ tokenizer ─▶ teacher (clean solutions) ─▶ student (the teacher, trained on misread ones)

The student can do every step and mostly does not, like a base language model, so that reinforcement learning shows
its effect within minutes.
"""

from treeopo.tiny.cache import TinyModels, ensure_tiny

__all__ = ["TinyModels", "ensure_tiny"]
