"""A real vLLM engine, in both weight formats: the promises of every engine, and what is particular to this one."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.adapter_kinds import KINDS, PEFT
from tests.adapters import of_peft
from tests.processes import engines
from tests.tiny_models import VOCABULARY
from treeopo import stages
from treeopo.engines.conformance import PROMPT, ExactEngineConformance, Policies
from treeopo.engines.in_process import VllmEngine
from treeopo.engines.launch import start_engine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.errors import EngineError, ModelError
from treeopo.ports import Engine
from treeopo.records import Request, WeightFormat
from treeopo.run.models import resolve, serve

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

OPTIONS = {
    weight_format: EngineOptions(max_model_tokens=256, dtype="float32", publish=weight_format.value)
    for weight_format in WeightFormat
}


class Listener:
    """Hears what an engine that starts is at."""

    def __init__(self) -> None:
        self.heard: set[str] = set()

    def enter(self, stage: str) -> None:
        self.heard.add(stage)

    detail = enter


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(WeightFormat))
async def shared_engine(request: pytest.FixtureRequest, model: Path) -> AsyncIterator[Engine]:
    listener = Listener()
    with stages.heard_by(listener):
        started = await start_engine(str(model), OPTIONS[request.param], Adapters(rank=16, versions=4))
    assert listener.heard & {"starting its process", "loading weights", "warming up"}
    yield started
    await started.close()


class TestVllm(ExactEngineConformance):
    """As a run has it: vLLM in a child process, restarted if it dies; in float32, where rounding hides no mistake."""

    @pytest.fixture
    def start(self, model: Path) -> Callable[[], Awaitable[Engine]]:
        return partial(start_engine, str(model), OPTIONS[WeightFormat.MERGED])

    @pytest.fixture
    def policies(self, saved_policies: Policies) -> Policies:
        return saved_policies

    @pytest.fixture
    def engine(self, shared_engine: Engine) -> Engine:
        return shared_engine

    async def test_an_adapter_says_in_vllm_what_it_says_in_plain_peft(
        self, engine: Engine, policies: Policies, model: Path
    ) -> None:
        await self.publish(engine, policies, 1)
        greedy = await engine.generate(Request(PROMPT, 12, seed=0, temperature=0.0))
        base = AutoModelForCausalLM.from_pretrained(model)
        plain = PeftModel.from_pretrained(base, str(policies.path(WeightFormat.ADAPTER, 1))).eval()
        expected = plain.generate(input_ids=torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)
        assert [*PROMPT, *greedy.token_ids] == expected[0].tolist()

    @pytest.mark.filterwarnings("ignore::UserWarning:peft")
    async def test_every_kind_of_adapter_that_eval_accepts_says_in_vllm_what_it_says_in_peft(
        self, engine: Engine, model: Path, tmp_path: Path
    ) -> None:
        column = {WeightFormat.MERGED: 0, WeightFormat.ADAPTER: 1}[engine.weight_format]
        tokens = np.random.default_rng(0).integers(0, VOCABULARY - 1, 40).astype(np.int32)
        checked = 0
        for version, (name, kind) in enumerate(KINDS.items(), start=1000):
            if kind.outcomes[column] != PEFT:
                continue
            base, adapter = kind.make(tmp_path / str(version))
            if base_differs(base, model):
                continue
            await serve(engine, version, resolve(str(adapter), str(base)))
            (found,) = await engine.score([tokens], [1])
            logprobs = of_peft(base, adapter).eval()(torch.tensor(tokens[None]).long()).logits[0].log_softmax(-1)
            wanted = logprobs[torch.arange(39), torch.tensor(tokens[1:]).long()].detach().numpy()
            np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=name)
            checked += 1
        assert checked >= {WeightFormat.MERGED: 12, WeightFormat.ADAPTER: 4}[engine.weight_format]

    async def test_a_token_that_the_model_does_not_have_is_refused_and_the_engine_unharmed(
        self, engine: Engine
    ) -> None:
        with pytest.raises(EngineError, match="vLLM refused a request"):
            await engine.generate(Request([VOCABULARY + 5], 4, seed=0))
        assert len((await engine.generate(Request(PROMPT, 4, seed=0))).token_ids) == 4

    @pytest.mark.parametrize("publications", [20, pytest.param(200, marks=pytest.mark.slow)])
    async def test_memory_is_steady_over_publications(
        self, engine: Engine, policies: Policies, publications: int
    ) -> None:
        (process,) = engines(os.getpid())
        before = 0.0
        for number in range(publications + 5):
            await self.publish(engine, policies, 1 + number % 3)
            await engine.generate(Request([1, 2, 3], 4, seed=number))
            if number == 4:
                before = resident_mib(process)
        assert resident_mib(process) - before < 10 + 0.05 * publications

    async def test_a_policy_that_cannot_be_read_is_an_error_and_an_adapter_leaves_the_engine_unharmed(
        self, engine: Engine, policies: Policies, tmp_path: Path
    ) -> None:
        if engine.weight_format is WeightFormat.MERGED:
            pytest.skip("an engine that took part of a merged policy is not used again (tests of restarts)")
        await self.publish(engine, policies, 1)
        with pytest.raises(EngineError, match="cannot use policy version 2"):
            await engine.publish(2, tmp_path / "nothing")
        completion = await engine.generate(Request([1, 2, 3], 4, seed=0))
        assert set(completion.versions.tolist()) == {1}


def base_differs(base: Path, served: Path) -> bool:
    """Whether `base` is another model than the engine serves: by their files, for each is made anew from a seed."""
    return (base / "model.safetensors").read_bytes() != (served / "model.safetensors").read_bytes()


def resident_mib(process: int) -> float:
    """Of the engine itself: pages it holds now, as Linux counts them."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def test_a_model_with_fewer_positions_than_asked_for_is_refused_before_anything_starts(model: Path) -> None:
    with pytest.raises(ModelError, match=r"reads 512 tokens, fewer than the 4096 asked for"):
        VllmEngine.start(str(model), EngineOptions(max_model_tokens=4096))
