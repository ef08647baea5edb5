"""What every adapter of the `Engine` port must hold. Inherit `EngineContract`, and `ExactEngineContract` where the
engine serves a real model: give fixtures `engine` (serving version 0) and `policies`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LoraSettings
from treeopo.ports import Engine
from treeopo.records import Carrier, Completion, FinishReason, Request

VERSIONS = 4
LORA = LoraSettings(rank=4, alpha=16, dropout=0.0)
PROMPT = [5, 6, 7, 8]


@dataclass(frozen=True)
class Policies:
    """Versions 1 to VERSIONS - 1 on disk in both forms; `modules` computes each as transformers and PEFT do."""

    directory: Path
    modules: Mapping[int, torch.nn.Module]

    def path(self, carrier: Carrier, version: int) -> Path:
        return self.directory / (f"{version}.safetensors" if carrier is Carrier.MERGED else str(version))

    def error(self, prompt: list[int], completion: Completion, temperature: float = 1.0) -> float:
        """Worst difference in log-probability over the tokens of `completion`, each under the version it claims."""
        ids = torch.tensor([prompt + completion.token_ids.tolist()])
        worst = 0.0
        for version in set(completion.versions.tolist()):
            with torch.no_grad():
                logits = self.modules[version](input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / temperature
            expected = torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()
            worst = max(worst, np.abs(expected - completion.logprobs)[completion.versions == version].max())
        return float(worst)


def make_policies(model: Path, directory: Path) -> Policies:
    """Adapters far enough from each other that one taken for another shows."""
    modules: dict[int, torch.nn.Module] = {0: AutoModelForCausalLM.from_pretrained(model)}
    for version in range(1, VERSIONS):
        torch.manual_seed(version)
        policy = LoraPolicy.load(str(model), LORA, dtype=torch.float32, device=torch.device("cpu"))
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        policy.save_merged(directory / f"{version}.safetensors")
        policy.save_adapter(directory / str(version))
        modules[version] = policy.model.eval()
    return Policies(directory, modules)


class EngineContract:
    """Policies are published anew by each test that needs one, so that tests may share an engine."""

    async def publish(self, engine: Engine, policies: Policies, version: int) -> None:
        await engine.publish(version, policies.path(engine.carrier, version))

    async def test_every_token_has_a_log_probability_and_a_version(self, engine: Engine) -> None:
        completion = await engine.generate(Request(PROMPT, 12, seed=1))
        assert 0 < len(completion.token_ids) <= 12
        assert len(completion.logprobs) == len(completion.versions) == len(completion.token_ids)
        assert (completion.logprobs <= 1e-6).all()

    async def test_the_token_limit_is_told_from_a_stop(self, engine: Engine) -> None:
        completion = await engine.generate(Request(PROMPT, 3, seed=1))
        assert completion.finish_reason is FinishReason.LENGTH
        assert len(completion.token_ids) == 3

    async def test_the_answer_depends_on_the_seed_and_not_on_the_company(self, engine: Engine) -> None:
        alone = await engine.generate(Request(PROMPT, 20, seed=7))
        crowd = await asyncio.gather(*(engine.generate(Request(PROMPT, 20, seed=seed)) for seed in range(12)))
        assert crowd[7].token_ids.tolist() == alone.token_ids.tolist()
        assert len({tuple(completion.token_ids.tolist()) for completion in crowd}) > 1

    async def test_a_publication_serves_every_request_that_begins_after_it(
        self, engine: Engine, policies: Policies
    ) -> None:
        for version in (2, 1, 2):  # going back is no different: a restarted engine is given an old number again
            await self.publish(engine, policies, version)
            completion = await engine.generate(Request(PROMPT, 10, seed=3))
            assert set(completion.versions.tolist()) == {version}
            assert engine.versions_in_use == {version}

    async def test_requests_in_flight_go_on_across_publications(self, engine: Engine, policies: Policies) -> None:
        """Merged policies overtake them, adapters do not; either way versions only grow within a completion."""
        await self.publish(engine, policies, 1)
        tasks = [asyncio.create_task(engine.generate(Request(PROMPT, 150, seed=seed))) for seed in range(12)]
        await asyncio.sleep(0.05)
        await self.publish(engine, policies, 2)
        in_use = engine.versions_in_use
        tasks.append(asyncio.create_task(engine.generate(Request(PROMPT, 20, seed=50))))
        await self.publish(engine, policies, 3)
        *earlier, between = await asyncio.gather(*tasks)
        assert 2 in in_use
        for completion in earlier:
            assert (np.diff(completion.versions) >= 0).all()
            assert set(completion.versions.tolist()) <= {1, 2, 3}
            if engine.carrier is Carrier.ADAPTER:
                assert len(set(completion.versions.tolist())) == 1
        assert set(between.versions.tolist()) <= {2, 3}
        assert engine.versions_in_use == {3}

    async def test_a_cancelled_request_is_aborted_and_reads_nothing_any_more(
        self, engine: Engine, policies: Policies
    ) -> None:
        await self.publish(engine, policies, 1)
        task = asyncio.create_task(engine.generate(Request(PROMPT, 200, seed=0)))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await self.publish(engine, policies, 2)
        assert engine.versions_in_use == {2}


class ExactEngineContract(EngineContract):
    """Log-probabilities are those that transformers and PEFT compute in float32, to 1e-5."""

    async def test_log_probabilities_are_those_of_the_temperature_sampled_at(
        self, engine: Engine, policies: Policies
    ) -> None:
        await self.publish(engine, policies, 1)
        for temperature in (1.0, 0.5):
            completion = await engine.generate(Request(PROMPT, 30, seed=2, temperature=temperature))
            assert policies.error(PROMPT, completion, temperature) < 1e-5

    async def test_each_token_in_flight_across_publications_is_of_the_version_it_claims(
        self, engine: Engine, policies: Policies
    ) -> None:
        """Requests share a cached prefix; some start before, some between, some after three publications."""
        shared = [7, 8, 9, 10] * 8
        await self.publish(engine, policies, 1)
        await engine.generate(Request(shared, 4, seed=0))  # its keys and values are cached under version 1
        tasks, prompts = [], []
        for version in range(1, VERSIONS):
            await self.publish(engine, policies, version)
            for index in range(8):
                prompts.append([*shared, index])
                tasks.append(asyncio.create_task(engine.generate(Request(prompts[-1], 150, seed=len(tasks)))))
            await asyncio.sleep(0.2)
        completions = await asyncio.gather(*tasks)
        seen = set(np.concatenate([completion.versions for completion in completions]).tolist())
        assert len(seen) >= 2, "the machine was too slow or too fast for versions to mix"
        for prompt, completion in zip(prompts, completions, strict=True):
            assert policies.error(prompt, completion) < 1e-5

    async def test_no_cached_prefix_of_one_version_serves_another(self, engine: Engine, policies: Policies) -> None:
        prompt = [11, 12, 13, 14] * 10
        for version in (1, 2, 1, 3):
            await self.publish(engine, policies, version)
            assert policies.error(prompt, await engine.generate(Request(prompt, 20, seed=3))) < 1e-5
