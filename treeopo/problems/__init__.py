"""Where questions come from and how answers are graded. Imports neither torch nor a tokenizer."""

from treeopo.problems.graders.number import final_answer, grade, parse_number
from treeopo.problems.problem_set import STEP_SEPARATOR, ProblemSet, PromptTemplate
from treeopo.problems.spec import load_problem_set, load_problems

__all__ = [
    "STEP_SEPARATOR",
    "ProblemSet",
    "PromptTemplate",
    "final_answer",
    "grade",
    "load_problem_set",
    "load_problems",
    "parse_number",
]
