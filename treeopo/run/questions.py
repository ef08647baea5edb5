"""A problem set as the questions that a model is asked."""

from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ProblemError
from treeopo.evaluation.accuracy import Question
from treeopo.ports import Notify
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Prompter, PromptSettings


def make_questions(
    tokenizer: ModelTokenizer,
    settings: PromptSettings,
    problem_set: ProblemSet,
    notify: Notify = lambda notice: None,
) -> list[Question]:
    """Each problem with the tokens that ask it; `notify` as in `Prompter`.

    Raises:
        ProblemError: there is no problem.
    """
    prompter = Prompter(tokenizer, settings, problem_set, notify)
    questions = [Question(problem, prompter(problem), prompter.stop) for problem in problem_set]
    if not questions:
        raise ProblemError(f"{problem_set.spec}: there is no problem to evaluate on")
    return questions
