"""The claims of test_families.py on tokenizers of real models, where their directories are given:

TREEOPO_REAL_MODELS=/models/smollm2:/models/gemma pytest tests/hard_knocks/test_real_tokenizers.py
"""

import json
import os
from pathlib import Path
from typing import Literal

import pytest
from treeopo_storage import open_store

from tests.hard_knocks.families import FAMILIES
from tests.hard_knocks.small_stores import PROBLEM, build, imported, typed, whole
from treeopo.engines.scripted import Pieces
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ModelError
from treeopo.inspect.tokens import canonical_prefixes
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Prompter, PromptSettings
from treeopo.records import Problem

MODELS = [path for path in os.environ.get("TREEOPO_REAL_MODELS", "").split(os.pathsep) if path]
NUMBERS = ProblemSet("numbers", (PROBLEM,))
STEPS = ["Ann has 1,2 and 3 figs: 6.", " She eats half:\n6/2 = 3.", "So it is 3.\n#### 3"]

pytestmark = pytest.mark.skipif(not MODELS, reason="TREEOPO_REAL_MODELS names no model")


@pytest.fixture(params=MODELS or [""], ids=lambda path: Path(path).name)
def tokenizer(request: pytest.FixtureRequest) -> ModelTokenizer:
    return ModelTokenizer(request.param)


def begins_once(ids: list[int], tokenizer: ModelTokenizer) -> bool:
    opening = tokenizer.opening
    return ids[: len(opening)] == opening and not any(ids[1:].count(token) for token in opening)


def styles(tokenizer: ModelTokenizer) -> list[Literal["plain", "chat"]]:
    return ["plain", "chat"] if tokenizer.hf.chat_template else ["plain"]


def test_prompts_are_what_transformers_makes_of_them(tokenizer: ModelTokenizer) -> None:
    ids = Prompter(tokenizer, PromptSettings(), NUMBERS)(PROBLEM)
    assert ids == tokenizer.hf.encode(f"Question: {PROBLEM.question}\n\nAnswer:\n\nIt")[:-1]
    assert begins_once(ids, tokenizer)
    if "chat" in styles(tokenizer):
        (chat,) = [Prompter(tokenizer, PromptSettings(style="chat"), NUMBERS)(PROBLEM)]
        assert tokenizer.hf.encode(tokenizer.hf.decode(chat), add_special_tokens=False) == chat
    else:
        with pytest.raises(ModelError, match="chat prompts: "):
            Prompter(tokenizer, PromptSettings(style="chat"), NUMBERS)


def test_every_special_token_that_a_question_names_is_text(tokenizer: ModelTokenizer) -> None:
    names = [str(token) for token in tokenizer.hf.added_tokens_decoder.values() if token.special][:64]
    for style in styles(tokenizer):
        prompter = Prompter(tokenizer, PromptSettings(style=style), NUMBERS)
        named, plainly = prompter(Problem("a", f"What is {' '.join(names)}?", "7")), prompter(PROBLEM)
        for name in names:
            number = tokenizer.hf.convert_tokens_to_ids(name)
            assert named.count(number) == plainly.count(number), name


def test_imported_and_retokenised_steps_are_those_of_the_whole_solution(
    tokenizer: ModelTokenizer, tmp_path: Path
) -> None:
    trace = {"prompt": "How many figs?\n\n", "steps": STEPS}
    ids = imported(tmp_path, tokenizer, trace).prefix_tokens(3).tolist()
    assert ids[:-1] == tokenizer.hf.encode("How many figs?\n\n" + "\n\n".join(STEPS))
    assert ids[-1] in tokenizer.end_token_ids
    assert begins_once(ids, tokenizer)
    FAMILIES[0].saved(tmp_path / "other")
    (tmp_path / "t.jsonl").write_text(json.dumps(trace | {"question": "?", "answer": "3", "reward": 1}) + "\n")
    made, new = str(tmp_path / "t.zarr"), str(tmp_path / "new.zarr")
    typed("store", "import", str(tmp_path / "t.jsonl"), "-o", made, "--tokenizer", str(tmp_path / "other"))
    model = ["--tokenizer", str(tokenizer.hf.name_or_path)]
    assert "; 0 no longer decode to their text" in typed("store", "retokenize", made, "-o", new, *model)
    assert open_store(new).problem(0).prefix_tokens(3).tolist() == ids


def test_a_searched_tree_is_canonical_and_reads_as_it_was_written(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    said: Pieces = [(f"{step}\n\n", -1.0) for step in STEPS[:-1]]
    for style in styles(tokenizer):
        (tmp_path / style).mkdir()
        policy = lambda *_: [*said, (STEPS[-1], -1.0)]  # noqa: E731
        store = open_store(build(tmp_path / style, tokenizer, policy=policy, prompt={"style": style}))
        assert canonical_prefixes(store, tokenizer).share > 0.5  # a teacher that writes piece by piece
        tree = store.problem(0)
        for node in range(1, tree.node_count):
            assert tokenizer.decode(tree.prefix_tokens(node).tolist()).endswith(whole(tree, node)[len(tree.texts[0]) :])
