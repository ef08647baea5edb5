"""A grader of your own: treeopo eval --grader examples.grader:NearMiss --problems examples.problem_set:sums"""

from treeopo.problems.graders.number import final_answer, number_answer, parse_number
from treeopo.records import Problem


class NearMiss:
    """1 for the right number, 0.3 for one within a tenth of it."""

    prompt_ending = "End with a line that holds #### and the answer."

    def parse_gold(self, text: str, *, worked: bool) -> str:
        if parse_number(text) is None:
            raise ValueError("does not end in one number")
        return text.strip()

    def answer(self, text: str) -> str:
        return number_answer(text)

    def grade(self, problem: Problem, text: str) -> float:
        found, gold = final_answer(text), parse_number(problem.answer)
        if found is None or gold is None:
            return 0.0
        return 1.0 if found == gold else 0.3 if abs(float(found - gold)) <= abs(float(gold)) / 10 else 0.0
