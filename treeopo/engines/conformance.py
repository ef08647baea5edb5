"""The proof that an engine keeps the promises of `treeopo.ports.Engine`. Inherit it in a test module:

class TestMyEngine(EngineConformance):
    @pytest.fixture
    def start(self):
        return ...      # an async function without parameters that starts one, serving policy version 0

`ExactEngineConformance` is for engines that serve a real model: it also compares log-probabilities with those that
transformers and PEFT compute. Needs pytest with pytest-asyncio in auto mode; the exact suite needs torch. To share an
engine among the tests, override the fixture `engine` by one that returns a fixture of wider scope.
"""

import asyncio
import os
from abc import ABC
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, assert_never

import numpy as np
import pytest

from treeopo.errors import EngineDeadError, EngineError
from treeopo.ports import Engine
from treeopo.records import Completion, FinishReason, FloatArray, IntArray, Request, WeightFormat

VERSIONS = 4
"""Policy versions 0 (the model as it is) to VERSIONS - 1 are served."""

PROMPT = [5, 6, 7, 8]


@dataclass(frozen=True)
class Policies:
    """Where policy versions 1 to VERSIONS - 1 are on disk, in both forms.

    modules: for the exact suite, the torch module of each version, 0 included.
    """

    directory: Path
    modules: Mapping[int, Any] = field(default_factory=dict)

    def path(self, weight_format: WeightFormat, version: int) -> Path:
        match weight_format:
            case WeightFormat.MERGED:
                return self.directory / f"{version}.safetensors"
            case WeightFormat.ADAPTER:
                return self.directory / str(version)
            case _:
                assert_never(weight_format)

    def logprobs(self, version: int, token_ids: IntArray, temperature: float = 1.0) -> FloatArray:
        """(T - 1,) log-probability of each token (T,) but the first, under a version as torch computes it."""
        import torch

        ids = torch.as_tensor(np.asarray(token_ids, np.int64))
        with torch.no_grad():
            logits = self.modules[version](input_ids=ids[None]).logits[0, :-1].float() / temperature
        found: FloatArray = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0].numpy()
        return found

    def error(self, prompt: list[int], completion: Completion, temperature: float = 1.0) -> float:
        """Worst difference in log-probability over the tokens of `completion`, each under the version it claims."""
        worst = 0.0
        for version in set(completion.versions.tolist()):
            expected = self.logprobs(version, joined(prompt, completion), temperature)[len(prompt) - 1 :]
            worst = max(worst, np.abs(expected - completion.logprobs)[completion.versions == version].max())
        return float(worst)


class SavesPolicy(Protocol):
    """What `treeopo.learner.policy.LoraPolicy` is to `make_policies`."""

    model: Any

    def save_merged(self, path: Path) -> None: ...

    def save_adapter(self, directory: Path) -> None: ...


def make_policies(load: Callable[[], SavesPolicy], directory: Path) -> Policies:
    """Write random adapters over one model, far enough from each other that one taken for another shows.

    load: a new policy of the model in float32, its adapter untrained (`LoraPolicy.load`).
    """
    import torch

    modules = {}
    for version in range(VERSIONS):
        policy = load()
        torch.manual_seed(version)
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name and version:
                torch.nn.init.normal_(parameter, std=0.1)
        if version:
            policy.save_merged(directory / f"{version}.safetensors")
            policy.save_adapter(directory / str(version))
        modules[version] = policy.model.eval()
    return Policies(directory, modules)


def joined(prompt: list[int], completion: Completion) -> IntArray:
    return np.array([*prompt, *completion.token_ids], np.int32)


def child_processes() -> set[str]:
    """Id and command of each process below this one, where the system has /proc; Python's own helper is left out."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (process / "cmdline").read_text().replace("\0", " ").strip()
            if int(parent) == os.getpid() and state != "Z" and "resource_tracker" not in command:
                found.add(f"{process.name}: {command}")
    return found


class EngineConformance(ABC):  # noqa: B024  what is missing is a fixture, which pytest finds out
    """Tests may share an engine: each publishes the policy that it needs."""

    max_model_tokens = 256
    """What `start` makes engines for: prompt and completion together."""

    tolerance = 1e-5
    """Of log-probabilities that are the same but for rounding; an engine in bfloat16 needs more."""

    @pytest.fixture
    def start(self) -> Callable[[], Awaitable[Engine]]:
        """Start an engine that serves policy version 0."""
        raise NotImplementedError("a conformance test needs a fixture `start`")

    @pytest.fixture
    async def engine(self, start: Callable[[], Awaitable[Engine]]) -> AsyncIterator[Engine]:
        engine = await start()
        yield engine
        await engine.close()

    @pytest.fixture
    def policies(self, tmp_path: Path) -> Policies:
        """Paths without files; override it for an engine that reads them."""
        return Policies(tmp_path)

    async def publish(self, engine: Engine, policies: Policies, version: int) -> None:
        await engine.publish(version, policies.path(engine.weight_format, version))

    # First, while nothing was published: a server keeps merged weights when its engine is closed.
    async def test_it_begins_with_version_0_and_once_closed_leaves_no_process_and_answers_no_more(
        self, start: Callable[[], Awaitable[Engine]], policies: Policies
    ) -> None:
        before = child_processes()
        engine = await start()
        assert engine.versions_in_use == {0}
        assert set((await engine.generate(Request(PROMPT, 4, seed=0))).versions.tolist()) == {0}
        waiting = [asyncio.create_task(engine.generate(Request(PROMPT, 200, seed=seed))) for seed in range(4)]
        await asyncio.sleep(0.02)
        await engine.close()
        await engine.close()
        left = child_processes() - before
        assert not left, f"close left {left}"
        answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), timeout=30)
        assert all(isinstance(answer, Completion | EngineDeadError) for answer in answers)
        with pytest.raises(EngineDeadError):
            await engine.generate(Request(PROMPT, 4, seed=0))
        with pytest.raises(EngineDeadError):
            await engine.score([np.array(PROMPT, np.int32)], [1])
        with pytest.raises(EngineDeadError):
            await self.publish(engine, policies, 1)

    async def test_every_token_has_a_log_probability_and_a_version(self, engine: Engine) -> None:
        completion = await engine.generate(Request(PROMPT, 12, seed=1))
        assert 0 < len(completion.token_ids) <= 12
        assert len(completion.logprobs) == len(completion.versions) == len(completion.token_ids)
        assert (completion.logprobs <= 1e-6).all()

    async def test_the_token_limit_is_told_from_a_stop(self, engine: Engine) -> None:
        completion = await engine.generate(Request(PROMPT, 3, seed=1))
        assert completion.finish_reason is FinishReason.LENGTH
        assert len(completion.token_ids) == 3

    async def test_a_stop_string_ends_the_completion_with_the_token_that_completes_it(self, engine: Engine) -> None:
        free = await engine.generate(Request(PROMPT, 60, seed=7))
        stop = next(character for character in free.text[3:] if character.isascii() and character.isprintable())
        stopped = await engine.generate(Request(PROMPT, 60, seed=7, stop=(stop,)))
        assert stopped.finish_reason is FinishReason.STOP
        assert stopped.text.endswith(stop)
        length = len(stopped.token_ids)
        assert length < len(free.token_ids)
        assert stopped.token_ids.tolist() == free.token_ids[:length].tolist()

    async def test_the_answer_depends_on_the_seed_and_not_on_the_company(self, engine: Engine) -> None:
        seeds = [*range(11), 2**63 - 9]  # seeds are 63 bits wide
        alone = await engine.generate(Request(PROMPT, 20, seed=seeds[-1]))
        crowd = await asyncio.gather(*(engine.generate(Request(PROMPT, 20, seed=seed)) for seed in seeds))
        assert crowd[-1].token_ids.tolist() == alone.token_ids.tolist()
        assert len({tuple(completion.token_ids.tolist()) for completion in crowd}) > 1

    async def test_at_temperature_0_the_seed_has_no_say(self, engine: Engine) -> None:
        greedy = [await engine.generate(Request(PROMPT, 12, seed=seed, temperature=0.0)) for seed in (1, 2, 3)]
        assert len({tuple(completion.token_ids.tolist()) for completion in greedy}) == 1

    async def test_a_prompt_that_leaves_no_room_is_refused_and_the_engine_unharmed(self, engine: Engine) -> None:
        with pytest.raises(EngineError) as refused:
            await engine.generate(Request([5] * (self.max_model_tokens - 10), 20, seed=0))
        assert not isinstance(refused.value, EngineDeadError)
        assert len((await engine.generate(Request(PROMPT, 4, seed=0))).token_ids) == 4

    async def test_scores_are_the_log_probabilities_of_what_the_newest_policy_sampled(
        self, engine: Engine, policies: Policies
    ) -> None:
        await self.publish(engine, policies, 1)
        completions = [await engine.generate(Request(PROMPT, length, seed=length)) for length in (40, 9)]
        rows = [joined(PROMPT, completion) for completion in completions]
        scores = await engine.score(rows, [len(PROMPT)] * 2)
        for score, completion in zip(scores, completions, strict=True):
            np.testing.assert_allclose(score, completion.logprobs, atol=self.tolerance)

    async def test_cancelled_scoring_leaves_the_engine_at_work(self, engine: Engine, policies: Policies) -> None:
        rows = [np.arange(5, 200, dtype=np.int32) for _ in range(8)]
        task = asyncio.create_task(engine.score(rows, [1] * len(rows)))
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):  # an engine may have been fast enough
            await task
        await self.publish(engine, policies, 1)
        assert engine.versions_in_use == {1}
        assert len((await engine.generate(Request(PROMPT, 4, seed=0))).token_ids) == 4

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
            found = set(completion.versions.tolist())
            assert (np.diff(completion.versions) >= 0).all()
            assert found <= {1, 2, 3}
            match engine.weight_format:
                case WeightFormat.ADAPTER:
                    assert len(found) == 1
                case WeightFormat.MERGED:
                    pass
                case _:
                    assert_never(engine.weight_format)
        assert set(between.versions.tolist()) <= {2, 3}
        assert engine.versions_in_use == {3}

    async def test_a_cancelled_request_is_aborted_and_its_version_no_longer_in_use(
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

    async def test_peak_memory_never_falls_and_an_engine_that_lives_has_no_restart(self, engine: Engine) -> None:
        restarts, peak = engine.restarts, engine.peak_memory_mib()
        await asyncio.gather(*(engine.generate(Request(PROMPT, 20, seed=seed)) for seed in range(4)))
        assert engine.peak_memory_mib() >= peak >= 0
        assert engine.restarts == restarts


class ExactEngineConformance(EngineConformance):
    """Log-probabilities are those that transformers and PEFT compute, to `tolerance`: serve a model of random weights
    in float32, and give a fixture `policies` with modules (`make_policies`).
    """

    async def test_log_probabilities_are_those_of_the_temperature_sampled_at(
        self, engine: Engine, policies: Policies
    ) -> None:
        await self.publish(engine, policies, 1)
        for temperature in (1.0, 0.5):
            completion = await engine.generate(Request(PROMPT, 30, seed=2, temperature=temperature))
            assert policies.error(PROMPT, completion, temperature) < self.tolerance

    async def test_scores_of_any_tokens_are_exact_wherever_the_prefix_ends(
        self, engine: Engine, policies: Policies
    ) -> None:
        await self.publish(engine, policies, 2)
        rows = [np.random.default_rng(length).integers(0, 250, length).astype(np.int32) for length in (3, 40, 200)]
        prefixes = [1, 17, 190]
        for row, prefix, score in zip(rows, prefixes, await engine.score(rows, prefixes), strict=True):
            np.testing.assert_allclose(score, policies.logprobs(2, row)[prefix - 1 :], atol=self.tolerance)

    async def test_each_token_in_flight_across_publications_is_of_the_version_it_claims(
        self, engine: Engine, policies: Policies
    ) -> None:
        """Requests share a cached prefix; some start before, some between, some after three publications."""
        shared = [7, 8, 9, 10] * 8
        await self.publish(engine, policies, 1)
        await engine.generate(Request(shared, 4, seed=0))  # its keys and values are cached under version 1
        tasks: list[asyncio.Task[Completion]] = []
        prompts: list[list[int]] = []
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
            assert policies.error(prompt, completion) < self.tolerance

    async def test_no_cached_prefix_of_one_version_serves_another(self, engine: Engine, policies: Policies) -> None:
        prompt = [11, 12, 13, 14] * 10
        for version in (1, 2, 1, 3):
            await self.publish(engine, policies, version)
            completion = await engine.generate(Request(prompt, 20, seed=3))
            assert policies.error(prompt, completion) < self.tolerance
