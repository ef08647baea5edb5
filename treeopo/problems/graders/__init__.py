"""Graders: what reads and compares final answers. Those that ship, and by `package.module:Name` any other."""

from treeopo.problems.graders.base import Grader, GradingTimeout, has_quick, load_grader
from treeopo.problems.graders.golds import unreadable_golds
from treeopo.problems.graders.opened import OpenGrader, open_grader
from treeopo.problems.settings import DEFAULT_GRADER, GRADERS

__all__ = [
    "DEFAULT_GRADER",
    "GRADERS",
    "Grader",
    "GradingTimeout",
    "OpenGrader",
    "has_quick",
    "load_grader",
    "open_grader",
    "unreadable_golds",
]
