"""Both carriers in a real vLLM engine: the contract every engine holds, and memory that does not grow."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contract.engine_contract import LORA, ExactEngineContract, Policies, make_policies
from tests.processes import engines
from tests.tiny_models import random_qwen2
from treeopo.engines.launch import start_engine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.errors import EngineError
from treeopo.ports import Engine
from treeopo.records import Carrier, Request

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture(scope="module")
def policies(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Policies:
    return make_policies(model, tmp_path_factory.mktemp("policies"))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["merged", "adapter"])
async def engine(request: pytest.FixtureRequest, model: Path) -> AsyncIterator[Engine]:
    """float32, so that a wrong weight cannot hide behind rounding."""
    options = EngineOptions(max_model_tokens=256, dtype="float32", publish=request.param)
    started = await start_engine(str(model), options, Adapters(rank=LORA.rank, versions=4))
    yield started
    await started.close()


class TestVllmEngine(ExactEngineContract):
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
        if engine.carrier is Carrier.MERGED:
            pytest.skip("an engine that took part of a merged policy is not used again (tests of restarts)")
        await self.publish(engine, policies, 1)
        with pytest.raises(EngineError, match="cannot use policy version 2"):
            await engine.publish(2, tmp_path / "nothing")
        completion = await engine.generate(Request([1, 2, 3], 4, seed=0))
        assert set(completion.versions.tolist()) == {1}


def resident_mib(process: int) -> float:
    """Of the engine itself: pages it holds now, as Linux counts them."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
