"""What the engine tests share: a random model, its policies on disk, and one vLLM server on the loopback."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.servers import Server
from tests.tiny_models import random_qwen2
from treeopo.engines.conformance import Policies, make_policies
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LoraSettings

LORA = LoraSettings(rank=4, alpha=16, dropout=0.0)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture(scope="session")
def saved_policies(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Policies:
    load = partial(LoraPolicy.load, str(model), LORA, dtype=torch.float32, device=torch.device("cpu"))
    return make_policies(load, tmp_path_factory.mktemp("policies"))


@pytest.fixture(scope="session")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(model, tmp_path_factory.mktemp("server") / "log", max_model_len=512, api_key=Server.KEY)
    try:
        yield started.wait()
    finally:
        started.kill()
