"""The embedded models as transformers loads them: one tokenizer in training and after, and figures that hold."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from treeopo.problems import grade, load_problem_set
from treeopo.problems.staged_arithmetic import Difficulty
from treeopo.tiny import ensure_tiny
from treeopo.tiny.corpus import clean_texts
from treeopo.tiny.recipe import RECIPES, Phase
from treeopo.tiny.training import make_models, train_tokenizer

SHORT = replace(
    RECIPES[Difficulty.EASY], teacher=Phase(2, 8, 1e-3, seed=1), student=Phase(2, 8, 1e-3, seed=2), hidden=64, layers=1
)
TEXTS = [prompt + solution for prompt, solution in islice(clean_texts(Difficulty.EASY, 1), 500)]
STRANGE = ["12 + 5\n\n= 17", "a\n\n\nb", "?\n\nNo.\n\n  x", "é ½ 数 🙂", "  two  spaces ", "#### 42\n\n", "1234567"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_models(SHORT, directory, lambda name, step, loss: None)
    return directory


def test_the_loaded_tokenizer_gives_the_ids_of_the_trained_one(made: Path) -> None:
    trained = train_tokenizer(
        (prompt + solution for prompt, solution in islice(clean_texts(Difficulty.EASY, 1), 5000)), SHORT.vocabulary
    )
    for name in ("student", "teacher"):
        loaded = AutoTokenizer.from_pretrained(made / name)
        for text in TEXTS + STRANGE:
            assert loaded(text)["input_ids"] == trained(text)["input_ids"]
        assert (loaded.eos_token, loaded.pad_token) == ("<|endoftext|>", "<|pad|>")
        assert loaded.eos_token_id != loaded.pad_token_id


def test_the_engine_loads_the_same_tokenizer(made: Path) -> None:
    from vllm.tokenizers import get_tokenizer

    loaded, of_engine = AutoTokenizer.from_pretrained(made / "student"), get_tokenizer(str(made / "student"))
    for text in TEXTS + STRANGE:
        assert of_engine.encode(text) == loaded(text)["input_ids"]


def test_text_survives_the_tokenizer_and_numbers_are_single_digits(made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made / "student")
    for text in TEXTS[:50] + STRANGE:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    tokens = [tokenizer.decode([index]) for index in range(len(tokenizer))]
    assert not [token for token in tokens if sum(character.isdigit() for character in token) > 1]


def test_a_prompt_and_its_steps_tokenise_apart_as_together(made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made / "student")
    for prompt, solution in islice(clean_texts(Difficulty.EASY, 3), 100):
        apart = tokenizer(prompt)["input_ids"] + tokenizer(solution)["input_ids"]
        assert apart == tokenizer(prompt + solution)["input_ids"]


def test_checkpoints_are_ordinary_bf16_qwen2_models_that_differ(made: Path) -> None:
    models = {name: AutoModelForCausalLM.from_pretrained(made / name) for name in ("student", "teacher")}
    for model in models.values():
        assert model.config.model_type == "qwen2"
        assert model.dtype == torch.bfloat16
        assert model.config.tie_word_embeddings
    weights = [model.model.layers[0].mlp.up_proj.weight for model in models.values()]
    assert not torch.equal(*weights)


def test_a_recipe_gives_the_same_weights_again_and_leaves_threads_alone(made: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    phases: list[tuple[str, int]] = []
    make_models(SHORT, tmp_path, lambda name, step, loss: phases.append((name, step)))
    assert phases == [("teacher", 1), ("teacher", 2), ("student", 1), ("student", 2)]
    assert torch.get_num_threads() == threads
    for name in ("student", "teacher"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == (made / name / "model.safetensors").read_bytes()


def test_the_embedded_size_is_about_a_million_parameters(tmp_path: Path) -> None:
    from treeopo.tiny.training import new_model

    recipe = RECIPES[Difficulty.EASY]
    model = new_model(recipe, train_tokenizer(TEXTS, recipe.vocabulary))
    assert 0.8e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.2e6


def pass_at_1(model: Path, spec: str, *, sample: bool = False, count: int = 300) -> float:
    """With transformers' own generate, greedy or at temperature 1, over held-out problems."""
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    problems = load_problem_set(spec, count)
    prompts = tokenizer([problems.prompt(problem) for problem in problems], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    ids = policy.generate(
        input_ids=prompts["input_ids"],
        attention_mask=prompts["attention_mask"],
        max_new_tokens=96,
        do_sample=sample,
        **({"top_k": 0, "top_p": 1.0, "temperature": 1.0} if sample else {}),
    )
    texts = tokenizer.batch_decode(ids[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(grade(problem, text) for problem, text in zip(problems, texts, strict=True)) / count


@pytest.mark.slow
def test_easy_teacher_solves_and_easy_student_mostly_does_not() -> None:
    models = ensure_tiny(Difficulty.EASY, progress=False)
    spec = "staged-arithmetic:easy:test"
    assert pass_at_1(models.teacher, spec) >= 0.9
    assert pass_at_1(models.teacher, spec, sample=True) >= 0.8
    assert 0.15 <= pass_at_1(models.student, spec) <= 0.35
    assert 0.1 <= pass_at_1(models.student, spec, sample=True) <= 0.35


@pytest.mark.slow
def test_sparse_student_almost_never_succeeds_from_the_root() -> None:
    models = ensure_tiny(Difficulty.SPARSE, progress=False)
    spec = "staged-arithmetic:sparse:test"
    assert pass_at_1(models.teacher, spec) >= 0.9
    assert pass_at_1(models.student, spec, count=1000) <= 0.02
