"""A real vLLM server by URL: what it returns is what transformers computes, for the version that each token claims."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM
from treeopo_storage import open_store

from tests.servers import Server
from tests.tiny_models import VOCABULARY
from treeopo.engines.balanced import BalancedEngine
from treeopo.engines.conformance import PROMPT, ExactEngineConformance, Policies
from treeopo.engines.server import ServerEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.errors import ConfigError, EngineError, ModelError
from treeopo.ports import Engine
from treeopo.records import Request, WeightFormat
from treeopo.trackers.jsonl import read_metrics

pytestmark = pytest.mark.engine

OPTIONS = {
    weight_format: EngineOptions(max_model_tokens=256, publish=weight_format.value) for weight_format in WeightFormat
}
ADAPTERS = Adapters(rank=4, versions=3)


@pytest.fixture(scope="module", autouse=True)
def key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TREEOPO_API_KEY", Server.KEY)
        yield


async def test_a_publication_takes_the_adapters_of_drained_versions_out_of_the_server(
    server: Server, model: Path, saved_policies: Policies
) -> None:
    engine = await ServerEngine.start(server.url, str(model), OPTIONS[WeightFormat.ADAPTER], ADAPTERS)

    def served() -> int:
        key = {"Authorization": f"Bearer {Server.KEY}"}
        models = httpx.get(f"{server.url}/v1/models", headers=key, trust_env=False)
        return len(models.json()["data"])

    before = served()
    for version in (1, 2, 3, 2, 1):
        await engine.publish(version, saved_policies.path(WeightFormat.ADAPTER, version))
        assert served() == before + 1
    await engine.close()
    assert served() == before


async def test_a_policy_that_is_not_there_is_refused_and_the_server_unharmed(
    server: Server, model: Path, tmp_path: Path
) -> None:
    engine = await ServerEngine.start(server.url, str(model), OPTIONS[WeightFormat.ADAPTER], ADAPTERS)
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
    assert not any(Server.KEY.encode() in content for content in written)
    assert not any(Server.KEY in text for text in said)
    assert Server.KEY.encode() not in str(meta).encode()


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


GSM8K = Path(os.environ.get("TREEOPO_GSM8K", Path(__file__).parents[3] / "shared/data/gsm8k")) / "train.jsonl"


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not here")
def test_gsm8k_runs_through_though_nothing_is_solved(server: Server, model: Path, tmp_path: Path) -> None:
    search = ["--rollouts", 4, "--set", "search.max_step_tokens=8", "--set", "search.max_solution_tokens=16"]
    source = ["--problems", GSM8K, "--limit", 2]
    out = treeopo("mcts", "build", "--teacher", model, *source, "-o", tmp_path / "s", *search, "--engine", server.url)
    assert "No prefix is informative" in out


def treeopo(*arguments: object) -> str:
    command = [sys.executable, "-m", "treeopo_cli.main", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["adapter", "balanced", "merged"])
async def shared_engine(server: Server, model: Path, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    weight_format = WeightFormat.MERGED if request.param == "merged" else WeightFormat.ADAPTER
    member = partial(ServerEngine.start, server.url, str(model), OPTIONS[weight_format], ADAPTERS)
    started = await (BalancedEngine.start([member, member]) if request.param == "balanced" else member())
    yield started
    await started.close()


@pytest.mark.asyncio(loop_scope="module")
class TestServer(ExactEngineConformance):
    """Adapters, two engines of one server as one, and merged weights: last, for a server keeps those."""

    @pytest.fixture
    def start(self, server: Server, model: Path) -> Callable[[], Awaitable[Engine]]:
        return partial(ServerEngine.start, server.url, str(model), OPTIONS[WeightFormat.ADAPTER], ADAPTERS)

    @pytest.fixture
    def policies(self, saved_policies: Policies) -> Policies:
        return saved_policies

    @pytest.fixture
    def engine(self, shared_engine: Engine) -> Engine:
        return shared_engine

    async def test_a_token_that_the_model_does_not_have_is_refused_and_the_server_unharmed(
        self, engine: Engine
    ) -> None:
        with pytest.raises(EngineError, match="out of vocabulary"):
            await engine.generate(Request([VOCABULARY + 5], 4, seed=0))
        assert len((await engine.generate(Request(PROMPT, 4, seed=0))).token_ids) == 4


async def test_a_missing_key_is_asked_for(server: Server, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TREEOPO_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="wants an API key; put it into TREEOPO_API_KEY"):
        await ServerEngine.start(server.url, str(model), OPTIONS[WeightFormat.ADAPTER])


async def test_merged_weights_that_a_run_left_behind_do_not_pass_for_the_base_model(
    server: Server, model: Path, saved_policies: Policies
) -> None:
    engine = await ServerEngine.start(server.url, str(model), OPTIONS[WeightFormat.MERGED], ADAPTERS)
    await engine.publish(1, saved_policies.path(WeightFormat.MERGED, 1))
    await engine.close()
    for adapters in (None, ADAPTERS):
        with pytest.raises(ModelError, match=r"still has the weights that another run published .*; restart it"):
            await ServerEngine.start(server.url, str(model), OPTIONS[WeightFormat.ADAPTER], adapters)
