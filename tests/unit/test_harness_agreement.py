"""GSM8K accuracy is what EleutherAI's lm-evaluation-harness gives the same completions (its task gsm8k, version 3)."""

from pathlib import Path

import lm_eval
import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters import build_filter_ensemble

from treeopo.problems.graders.number import grade
from treeopo.records import Problem

TASK = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())

COMPLETIONS = [
    ("18", "She sells 9 eggs.\n\n9 * 2 = 18\n\n#### 18", True),
    ("18", "9 * 2 = 18\n#### 18.\n", True),
    ("18", "#### $18", None),  # the harness's strict pattern takes no currency sign; ours does
    ("18", "9 * 2 = 18", False),
    ("18", "#### 19", False),
    ("1200", "#### 1,200", True),
    ("-4", "#### -4", True),
    ("5", "#### five", False),
    ("0.5", "#### 0.5", True),
    ("70000", "<<80000+50000=130000>>130000\n#### 70,000", True),
]


def strict_match(gold: str, completion: str) -> bool:
    """The harness's own filter and metric, as its task file configures them."""
    (config,) = [row for row in TASK["filter_list"] if row["name"] == "strict-match"]
    components = [(step["function"], {k: v for k, v in step.items() if k != "function"}) for step in config["filter"]]
    document = {"answer": f"...\n#### {gold}"}
    instance = Instance("generate_until", document, ("prompt", {}), 0, ("gsm8k", 0, 1), resps=[completion])
    build_filter_ensemble("strict-match", components).apply([instance])
    (metric,) = TASK["metric_list"]
    options = {name: metric[name] for name in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    answer = instance.filtered_resps["strict-match"]
    return bool(
        exact_match_hf_evaluate(predictions=[answer], references=[document["answer"]], **options)["exact_match"]
    )


@pytest.mark.parametrize(("gold", "completion", "right"), [row for row in COMPLETIONS if row[2] is not None])
def test_the_harness_and_treeopo_agree(gold: str, completion: str, right: bool) -> None:
    assert strict_match(gold, completion) == right
    assert grade(Problem("p", "?", gold), completion) == right


def test_where_they_differ_treeopo_accepts_a_currency_sign() -> None:
    (gold, completion, _) = next(row for row in COMPLETIONS if row[2] is None)
    assert not strict_match(gold, completion)
    assert grade(Problem("p", "?", gold), completion) == 1.0
