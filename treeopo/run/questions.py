"""A problem set as the questions that a model is asked."""

from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ProblemError
from treeopo.evaluation.accuracy import Question
from treeopo.ports import Notify
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Prompter, PromptSettings
from treeopo.problems.protocols import Protocol, protocol_prompts


def make_questions(
    tokenizer: ModelTokenizer,
    settings: PromptSettings,
    problem_set: ProblemSet,
    notify: Notify = lambda notice: None,
    protocol: Protocol | None = None,
) -> list[Question]:
    """Each problem with the tokens that ask it, by a protocol's words if one is given; `notify` as in `Prompter`.

    Raises:
        ProblemError: there is no problem.
    """
    if protocol is None:
        prompter = Prompter(tokenizer, settings, problem_set, notify)
        questions = [Question(problem, prompter(problem), prompter.stop) for problem in problem_set]
    else:
        prompts = protocol_prompts(protocol, tokenizer, settings, problem_set, notify)
        questions = [Question(*asked, protocol.stop) for asked in zip(problem_set, prompts, strict=True)]
    if not questions:
        raise ProblemError(f"{problem_set.spec}: there is no problem to evaluate on")
    return questions
