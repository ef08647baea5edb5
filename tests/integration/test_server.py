"""A real vLLM server by URL: what it returns is what transformers computes, for the version that each token claims."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM
from treeopo_storage import open_store

from tests.servers import Server
from tests.tiny_models import VOCABULARY, random_qwen2
from treeopo.engines.server import ServerEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError, EngineError, ModelError
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LoraSettings
from treeopo.metrics import read_metrics
from treeopo.records import Carrier, Completion, FinishReason, Request

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

VERSIONS = 4
KEY = "sk-of-the-tests"
OPTIONS = {carrier: EngineOptions(max_model_tokens=256, publish=carrier.value) for carrier in Carrier}
ADAPTERS = Adapters(rank=4, versions=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(model, tmp_path_factory.mktemp("server") / "log", max_model_len=512, api_key=KEY)
    yield started.wait()
    started.kill()


@pytest.fixture(scope="module")
def policies(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[torch.nn.Module, Path]]:
    """Version v's model, base and adapter side by side as PEFT runs them, and where its two forms are on disk."""
    directory = tmp_path_factory.mktemp("policies")
    found: list[tuple[torch.nn.Module, Path]] = [(AutoModelForCausalLM.from_pretrained(model), Path("unused"))]
    for version in range(1, VERSIONS):
        torch.manual_seed(version)
        lora = LoraSettings(rank=4, alpha=16, dropout=0.0)
        policy = LoraPolicy.load(str(model), lora, dtype=torch.float32, device=torch.device("cpu"))
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        policy.save_merged(directory / f"{version}.safetensors")
        policy.save_adapter(directory / str(version))
        found.append((policy.model.eval(), directory / str(version)))
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[Carrier.ADAPTER, Carrier.MERGED])
async def engine(server: Server, model: Path, request: pytest.FixtureRequest) -> AsyncIterator[ServerEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TREEOPO_API_KEY", KEY)
        started = await ServerEngine.start(server.url, str(model), OPTIONS[request.param], ADAPTERS)
    yield started
    await started.close()


def policy_path(engine: ServerEngine, policies: list[tuple[torch.nn.Module, Path]], version: int) -> Path:
    path = policies[version][1]
    return path if engine.carrier is Carrier.ADAPTER else path.with_suffix(".safetensors")


def error(module: torch.nn.Module, prompt: list[int], completion: Completion, version: int) -> float:
    """Worst difference in log-probability over the tokens of `completion` that claim `version`."""
    ids = torch.tensor([prompt + completion.token_ids.tolist()])
    with torch.no_grad():
        logprobs = torch.log_softmax(module(input_ids=ids).logits[0, len(prompt) - 1 : -1].float(), dim=-1)
    expected = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()
    return float(np.abs(expected - completion.logprobs)[completion.versions == version].max())


async def test_a_publication_takes_the_adapters_of_drained_versions_out_of_the_server(
    server: Server, model: Path, policies: list[tuple[torch.nn.Module, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREEOPO_API_KEY", KEY)
    engine = await ServerEngine.start(server.url, str(model), OPTIONS[Carrier.ADAPTER], ADAPTERS)

    def served() -> int:
        models = httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False)
        return len(models.json()["data"])

    before = served()
    for version in (1, 2, 3, 2, 1):
        await engine.publish(version, policies[version][1])
        assert served() == before + 1
    await engine.close()
    assert served() == before


async def test_the_scores_of_a_teacher_are_what_transformers_computes(
    server: Server, model: Path, policies: list[tuple[torch.nn.Module, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREEOPO_API_KEY", KEY)
    options = EngineOptions(max_model_tokens=256, urls=(server.url,))
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, VOCABULARY, length).astype(np.int32) for length in (3, 40, 200)]
    prefixes = [1, 17, 190]
    scorer = await ServerEngine.start(server.url, str(model), options)
    try:
        scores = await scorer.score(rows, prefixes)
    finally:
        await scorer.close()
    for row, prefix, score in zip(rows, prefixes, scores, strict=True):
        ids = torch.tensor(row[None].astype(np.int64))
        with torch.no_grad():
            logprobs = torch.log_softmax(policies[0][0](input_ids=ids).logits[0].float(), dim=-1)
        expected = logprobs[prefix - 1 : -1].gather(1, ids[0, prefix:, None])[:, 0].numpy()
        np.testing.assert_allclose(score, expected, atol=1e-5)


async def test_a_policy_that_is_not_there_is_refused_and_the_server_unharmed(
    server: Server, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREEOPO_API_KEY", KEY)
    engine = await ServerEngine.start(server.url, str(model), OPTIONS[Carrier.ADAPTER], ADAPTERS)
    with pytest.raises(EngineError, match=r"did not take policy version 9: .*No adapter found"):
        await engine.publish(9, tmp_path / "nothing")
    await engine.generate(Request([1], 4, seed=0))
    await engine.close()


def test_a_store_is_built_a_student_trained_and_evaluated_by_url_and_the_key_is_written_nowhere(
    server: Server, model: Path, tmp_path: Path
) -> None:
    engine = ["--engine", f"{server.url}/v1"]
    search = ["--rollouts", 4, "--set", "search.max_step_tokens=8", "--set", "search.max_solution_tokens=16"]
    rollout = ["--set", "rollout.max_prompt_tokens=300", "--set", "rollout.max_sequence_tokens=330"]
    store, run = tmp_path / "trees.zarr", tmp_path / "run"
    said = [
        treeopo("mcts", "build", "--teacher", model, "--limit", 4, "-o", store, *search, *engine),
        treeopo("train", store, "--student", model, "-o", run, "--steps", 3, *rollout, *engine),
        treeopo("eval", run, "--against", "base", "--limit", 2, "--set", "max_new_tokens=8", *engine),
    ]
    meta = open_store(store).meta
    assert meta.teacher == str(model)
    assert [step["step"] for step in read_metrics(run / "metrics.jsonl")] == [1, 2, 3]
    assert json.loads((run / "config.json").read_text())["config"]["engine"]["urls"] == [f"{server.url}/v1"]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in content for content in written)
    assert not any(KEY in text for text in said)
    assert KEY.encode() not in str(meta).encode()


def test_a_teacher_behind_a_url_scores_the_steps_whose_log_probabilities_nobody_knows(
    server: Server, model: Path, tmp_path: Path
) -> None:
    """At another temperature than 1 that is every step, whichever action asked for it."""
    (tmp_path / "rephrase.txt").write_text("{question}\n\n")
    actions = ["search.actions=['step', 'solution', 'rephrase']", f"search.templates={tmp_path}"]
    settings = [*actions, "search.temperature=0.9", "search.max_step_tokens=8", "search.max_solution_tokens=16"]
    options = [part for setting in settings for part in ("--set", setting)]
    store = tmp_path / "trees.zarr"
    treeopo("mcts", "build", "--teacher", model, "--limit", 2, "-o", store, "--engine", server.url, *options)
    teacher = AutoModelForCausalLM.from_pretrained(model).eval()
    for tree in open_store(store).problems(0, 2):
        assert np.isfinite(tree.teacher_logprobs[tree.token_offsets[1] :]).all()
        leaf = int(np.flatnonzero(tree.terminal)[0])
        spans = [slice(*tree.token_offsets[step : step + 2]) for step in tree.path(leaf)]
        token_ids = torch.tensor(np.concatenate([tree.token_ids[span] for span in spans]).astype(np.int64))
        with torch.no_grad():
            logprobs = torch.log_softmax(teacher(input_ids=token_ids[None]).logits[0].float(), dim=-1)
        said = len(token_ids) - (spans[0].stop - spans[0].start)
        expected = logprobs[-said - 1 : -1].gather(1, token_ids[-said:, None])[:, 0].numpy()
        stored = np.concatenate([tree.teacher_logprobs[span] for span in spans[1:]])
        np.testing.assert_allclose(stored, expected, atol=1e-5)


def treeopo(*arguments: object) -> str:
    command = [sys.executable, "-m", "treeopo_cli.main", *map(str, arguments)]
    environment = os.environ | {"TREEOPO_API_KEY": KEY}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


async def test_log_probabilities_are_transformers_own_at_the_temperature_sampled_at(
    engine: ServerEngine, policies: list[tuple[torch.nn.Module, Path]]
) -> None:
    prompt = [9, 10]
    completion = await engine.generate(Request(prompt, 30, seed=2, temperature=0.5))
    ids = torch.tensor([prompt + completion.token_ids.tolist()])
    with torch.no_grad():
        logits = policies[0][0](input_ids=ids).logits[0, len(prompt) - 1 : -1] / 0.5
    expected = torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]
    np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=1e-5)


async def test_the_answer_depends_on_the_seed_and_not_on_the_company(engine: ServerEngine) -> None:
    seed = 2**63 - 9  # seeds are 63 bits wide
    alone = await engine.generate(Request([3, 4], 40, seed=seed))
    crowd = [engine.generate(Request([3, 4 + index], 40, seed=100 + index)) for index in range(30)]
    together, other, *_ = await asyncio.gather(
        engine.generate(Request([3, 4], 40, seed=seed)), engine.generate(Request([3, 4], 40, seed=8)), *crowd
    )
    assert together.token_ids.tolist() == alone.token_ids.tolist()
    assert other.token_ids.tolist() != alone.token_ids.tolist()


async def test_a_stop_string_ends_the_completion_with_the_token_that_completes_it(
    engine: ServerEngine, model: Path
) -> None:
    tokenizer = ModelTokenizer(str(model))
    free = await engine.generate(Request([3, 4], 60, seed=7))
    stop = next(text for token in free.token_ids[10:] if (text := tokenizer.decode([int(token)])).isascii() and text)
    stopped = await engine.generate(Request([3, 4], 60, seed=7, stop=(stop,)))
    assert stopped.finish_reason is FinishReason.STOP
    length = len(stopped.token_ids)
    assert stopped.token_ids.tolist() == free.token_ids[:length].tolist()
    assert stopped.text.endswith(stop)
    assert stopped.text == tokenizer.decode(stopped.token_ids.tolist())


async def test_what_cannot_be_served_is_refused_and_the_server_unharmed(engine: ServerEngine) -> None:
    with pytest.raises(EngineError, match="leaves room for 56 of the 100"):
        await engine.generate(Request([1] * 200, 100, seed=0))
    with pytest.raises(EngineError, match="out of vocabulary"):
        await engine.generate(Request([VOCABULARY + 5], 4, seed=0))
    assert len((await engine.generate(Request([1], 4, seed=0))).token_ids) == 4


async def test_each_token_in_flight_across_publications_is_of_the_version_it_claims(
    engine: ServerEngine, policies: list[tuple[torch.nn.Module, Path]]
) -> None:
    """Requests share a cached prefix, start before the first publication and end after the last."""
    shared = [7, 8, 9, 10] * 8
    prompts = [[*shared, index] for index in range(16)]
    await engine.generate(Request(shared, 4, seed=0))  # its keys and values are cached under the version before
    completions: list[Completion] = []
    for version in range(1, VERSIONS):
        tasks = [asyncio.create_task(engine.generate(Request(p, 120, seed=i))) for i, p in enumerate(prompts)]
        await asyncio.sleep(0.1)
        await engine.publish(version, policy_path(engine, policies, version))
        after = await engine.generate(Request(prompts[0], 8, seed=0))
        assert set(after.versions.tolist()) == {version}
        completions += [*await asyncio.gather(*tasks), after]
    for prompt, completion in zip([*prompts, prompts[0]] * (VERSIONS - 1), completions, strict=True):
        for version in set(completion.versions.tolist()):
            assert error(policies[version][0], prompt, completion, version) < 1e-5
    spans = {len(set(completion.versions.tolist())) for completion in completions}
    assert max(spans) == (1 if engine.carrier is Carrier.ADAPTER else 2)


async def test_a_missing_key_is_asked_for(server: Server, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TREEOPO_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="wants an API key; put it into TREEOPO_API_KEY"):
        await ServerEngine.start(server.url, str(model), OPTIONS[Carrier.ADAPTER])


async def test_merged_weights_that_a_run_left_behind_do_not_pass_for_the_base_model(
    server: Server, model: Path, policies: list[tuple[torch.nn.Module, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREEOPO_API_KEY", KEY)
    engine = await ServerEngine.start(server.url, str(model), OPTIONS[Carrier.MERGED], ADAPTERS)
    await engine.publish(1, policies[1][1].with_suffix(".safetensors"))
    await engine.close()
    for adapters in (None, ADAPTERS):
        with pytest.raises(ModelError, match=r"still has the weights that another run published .*; restart it"):
            await ServerEngine.start(server.url, str(model), OPTIONS[Carrier.ADAPTER], adapters)
