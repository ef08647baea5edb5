"""A problem set of your own: treeopo mcts build --problems examples.problem_set:sums"""

from collections.abc import Iterator


def sums(split: str) -> Iterator[dict[str, str]]:
    """Sums of two numbers; those of the test split are larger. Without splits, leave the parameter out."""
    first = {"train": 10, "test": 60}[split]
    for number in range(first, first + 20):
        yield {
            "id": f"sum-{number}",
            "question": f"What is {number} + {number + 1}?",
            "answer": str(2 * number + 1),
            "solution": f"{number} + {number + 1} = {2 * number + 1}\n\n#### {2 * number + 1}",
        }
