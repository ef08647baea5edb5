"""How busy an evaluation keeps the engine: its tokens per second against the same requests sent in one flat batch.

    python benchmarks/evaluation.py [--model DIR] [--problems 200] [--samples 4] [--repeats 3]

Real vLLM, the embedded student unless a model is given. Both sides ask the same engine the same requests, alternately;
the prefix cache is warm for both. Prints tokens per second of each and their ratio.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from recorded import Recorded

from treeopo.engines.in_process import VllmEngine
from treeopo.engines.settings import EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.evaluation.accuracy import Graded, Question, complete_and_grade
from treeopo.ports import Generate
from treeopo.problems.graders import open_grader
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Prompter, PromptSettings
from treeopo.problems.settings import GradingSettings
from treeopo.problems.spec import load_problem_set
from treeopo.records import Request
from treeopo.run.models import embedded

MAX_NEW_TOKENS = 96


async def evaluated(engine: Generate, problem_set: ProblemSet, questions: list[Question], samples: int) -> int:
    """Tokens of one evaluation, graded."""
    done: list[Graded] = []
    async with open_grader(problem_set.grader, GradingSettings()) as grader:
        await complete_and_grade(
            questions,
            engine,
            grader,
            grader.answer,
            max_new_tokens=MAX_NEW_TOKENS,
            samples=samples,
            seed=0,
            on_completion=done.append,
        )
    return sum(graded.tokens for graded in done)


async def flat(engine: Generate, requests: list[Request]) -> int:
    completions = await asyncio.gather(*map(engine.generate, requests))
    return sum(len(completion.token_ids) for completion in completions)


async def speed(side: Callable[[], Awaitable[int]]) -> float:
    began = time.perf_counter()
    return await side() / (time.perf_counter() - began)


async def run(model: str, problems: int, samples: int, repeats: int) -> None:
    problem_set = load_problem_set("staged-arithmetic:easy:test", problems)
    prompter = Prompter(ModelTokenizer(model), PromptSettings(), problem_set)
    questions = [Question(problem, prompter(problem)) for problem in problem_set]
    longest = max(len(question.prompt_ids) for question in questions)
    engine = VllmEngine.start(model, EngineOptions(max_model_tokens=longest + MAX_NEW_TOKENS))
    try:
        recorder = Recorded(engine)
        await evaluated(recorder, problem_set, questions, samples)  # warms up, and says what is asked
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(await speed(lambda: evaluated(engine, problem_set, questions, samples)))
            theirs.append(await speed(lambda: flat(engine, recorder.requests)))
    finally:
        await engine.close()
    print(f"{len(recorder.requests)} requests, median of {repeats}")
    print(f"evaluation  {statistics.median(ours):8,.0f} tokens/s")
    print(f"flat batch  {statistics.median(theirs):8,.0f} tokens/s")
    print(f"ratio       {statistics.median(ours) / statistics.median(theirs):8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model = arguments.model or str(embedded("").student)
    asyncio.run(run(model, arguments.problems, arguments.samples, arguments.repeats))


if __name__ == "__main__":
    main()
