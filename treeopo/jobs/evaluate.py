"""`treeopo eval`: accuracy of one model, or of two on the same problems.

problem sets ─▶ prompts ─▶ engine (one a base model) ─▶ grader ─▶ scores ─▶ intervals and differences
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

from treeopo.config import EvalConfig
from treeopo.engines.launch import StartEngine, start_engine
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.evaluation.accuracy import Graded, Question, Scores, complete_and_grade
from treeopo.evaluation.answers import Answers
from treeopo.evaluation.comparison import Evaluation, compare_models
from treeopo.ports import Engine, Notify
from treeopo.problems.graders import open_grader, unreadable_golds
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.spec import load_problem_set
from treeopo.run.models import BASE, ModelRef, adapters, embedded, resolve, serve
from treeopo.run.questions import make_questions

OnCompletion = Callable[[str, str, Graded], None]


def evaluate(
    config: EvalConfig,
    notify: Notify,
    on_progress: Callable[[int, int], None],
    start_engine: StartEngine = start_engine,
) -> tuple[Evaluation, ...]:
    """Accuracy of the configured models; one evaluation per problem set.

    Written to `config.output` if that is given, from where a stopped evaluation goes on. `on_progress(done, total)`
    counts completions over all models and sets.

    Raises:
        InputError: problems or models cannot be used, or the output holds another evaluation.
        EngineError: an engine failed; what it completed is kept.
    """
    problem_sets = [
        load_problem_set(spec, config.limit, config.grading.grader, "test") for spec in dict.fromkeys(config.problems)
    ]
    models = _models(config)
    settings = config.model_dump(
        mode="json", exclude={"output": True, "engine": True, "grading": {"workers", "memory_mib"}}
    )
    with Answers(config.output, settings) as answers:
        total = len(models) * sum(map(len, problem_sets)) * (1 + config.samples)
        done = count(answers.done_count + 1)

        def on_completion(problems: str, model: str, graded: Graded) -> None:
            answers.add(problems, model, graded)
            on_progress(next(done), total)

        scores = asyncio.run(_evaluate(config, models, problem_sets, answers, notify, on_completion, start_engine))
        labels = [model.label for model in models]
        evaluations = tuple(
            compare_models(problem_set.spec, labels, [scores[model, problem_set.spec] for model in models])
            for problem_set in problem_sets
        )
        answers.finish(evaluations)
    return evaluations


def _models(config: EvalConfig) -> list[ModelRef]:
    if config.model:
        first = resolve(config.model)
    else:
        first = ModelRef("embedded student", str(embedded(config.problems[0]).student))
    if config.against is None:
        return [first]
    return [first, first.without_adapter() if config.against == BASE else resolve(config.against)]


async def _evaluate(
    config: EvalConfig,
    models: Sequence[ModelRef],
    problem_sets: Sequence[ProblemSet],
    answers: Answers,
    notify: Notify,
    on_completion: OnCompletion,
    start_engine: StartEngine,
) -> dict[tuple[ModelRef, str], Scores]:
    """Scores by model and problem set. Models of one base share an engine, the base itself first."""
    scores: dict[tuple[ModelRef, str], Scores] = {}
    unreadable = {
        problem_set.spec: await unreadable_golds(
            problem_set.grader, config.grading, [problem.answer for problem in problem_set], notify
        )
        for problem_set in problem_sets
    }
    for base in dict.fromkeys(model.base for model in models):
        tokenizer = ModelTokenizer(base, config.engine.trust_remote_code)
        asked = [(problem_set, make_questions(tokenizer, config.prompt, problem_set)) for problem_set in problem_sets]
        longest = max(len(question.prompt_ids) for _, questions in asked for question in questions)
        notify(f"starting an engine for {base}")
        of_base = sorted((model for model in models if model.base == base), key=lambda model: bool(model.adapter))
        options = replace(config.engine, max_model_tokens=longest + config.max_new_tokens)
        engine = await start_engine(base, options, adapters(of_base))
        try:
            for version, model in enumerate(of_base, start=1):
                await serve(engine, version, model, config.engine.trust_remote_code)
                for problem_set, questions in asked:
                    report = partial(on_completion, problem_set.spec, model.label)
                    done = answers.done(problem_set.spec, model.label)
                    scores[model, problem_set.spec] = await _score(
                        config, engine, problem_set.grader, questions, report, done, unreadable[problem_set.spec]
                    )
        finally:
            await engine.close()
    return scores


async def _score(
    config: EvalConfig,
    engine: Engine,
    grader_name: str,
    questions: Sequence[Question],
    on_completion: Callable[[Graded], None],
    done: dict[tuple[str, int], Graded],
    unreadable: dict[str, int],
) -> Scores:
    """One model on one problem set, by what the engine serves."""
    async with open_grader(grader_name, config.grading, unreadable=unreadable) as grader:
        scores = await complete_and_grade(
            questions,
            engine,
            grader,
            grader.answer,
            max_new_tokens=config.max_new_tokens,
            samples=config.samples,
            seed=config.seed,
            on_completion=on_completion,
            done=done,
        )
        return replace(scores, grader=grader.take_counts())
