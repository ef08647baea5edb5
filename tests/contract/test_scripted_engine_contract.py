"""The scripted engine keeps the contract of `Engine`, under both carriers."""

from pathlib import Path

import pytest

from tests.contract.engine_contract import EngineContract, Policies
from treeopo.engines.scripted import ScriptedEngine, TreeWorld
from treeopo.ports import Engine
from treeopo.records import Carrier


class TestScriptedEngine(EngineContract):
    @pytest.fixture(params=list(Carrier))
    def engine(self, request: pytest.FixtureRequest) -> Engine:
        world = TreeWorld(branching=5, depth=60, success=lambda letters: 0.5)
        return ScriptedEngine(world, carrier=request.param, latency=lambda request: 0.1)

    @pytest.fixture
    def policies(self, tmp_path: Path) -> Policies:
        return Policies(tmp_path, {})
