"""A real vLLM engine: what it returns is what transformers computes, for the version that each token claims."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.processes import engines, is_alive
from tests.tiny_models import VOCABULARY, random_qwen2
from treeopo.engines.in_process import VllmEngine
from treeopo.engines.settings import EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import EngineDeadError, EngineError, ModelError
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LoraSettings
from treeopo.records import Completion, FinishReason, Request

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

VERSIONS = 4
LORA = LoraSettings(rank=4, alpha=16, dropout=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture(scope="module")
def policies(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[torch.nn.Module, Path]]:
    """Version v's model, base and adapter side by side as PEFT runs them, and its merged weights on disk."""
    directory = tmp_path_factory.mktemp("policies")
    found: list[tuple[torch.nn.Module, Path]] = [(AutoModelForCausalLM.from_pretrained(model), Path("unused"))]
    for version in range(1, VERSIONS):
        torch.manual_seed(version)
        policy = LoraPolicy.load(str(model), LORA, dtype=torch.float32, device=torch.device("cpu"))
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        policy.save_merged(directory / f"{version}.safetensors")
        policy.save_adapter(directory / str(version))
        found.append((policy.model.eval(), directory / f"{version}.safetensors"))
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[VllmEngine]:
    """float32, so that a wrong weight cannot hide behind rounding."""
    started = VllmEngine.start(str(model), EngineOptions(max_model_tokens=256, dtype="float32"))
    yield started
    await started.close()


def error(module: torch.nn.Module, prompt: list[int], completion: Completion, version: int) -> float:
    """Worst difference in log-probability over the tokens of `completion` that claim `version`."""
    ids = torch.tensor([prompt + completion.token_ids.tolist()])
    with torch.no_grad():
        logprobs = torch.log_softmax(module(input_ids=ids).logits[0, len(prompt) - 1 : -1].float(), dim=-1)
    expected = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()
    return float(np.abs(expected - completion.logprobs)[completion.versions == version].max())


async def test_log_probabilities_are_transformers_own(
    engine: VllmEngine, policies: list[tuple[torch.nn.Module, Path]]
) -> None:
    prompt = [5, 6, 7, 8]
    completion = await engine.generate(Request(prompt, 50, seed=1))
    assert len(completion.logprobs) == len(completion.token_ids) == len(completion.versions)
    assert error(policies[0][0], prompt, completion, 0) < 1e-5


async def test_scores_are_transformers_own_and_those_of_what_was_sampled(
    engine: VllmEngine, policies: list[tuple[torch.nn.Module, Path]]
) -> None:
    prompt = [5, 6, 7, 8]
    completion = await engine.generate(Request(prompt, 50, seed=1))
    ids = np.array([*prompt, *completion.token_ids], np.int32)
    scores = await engine.score([ids, ids, ids[:6]], [len(prompt), 1, 2])
    np.testing.assert_allclose(scores[0], completion.logprobs, atol=1e-5)
    with torch.no_grad():
        logprobs = torch.log_softmax(policies[0][0](input_ids=torch.tensor(ids[None])).logits[0, :-1].float(), -1)
    expected = logprobs.gather(1, torch.tensor(ids[1:, None], dtype=torch.long))[:, 0].numpy()
    np.testing.assert_allclose(scores[1], expected, atol=1e-5)
    np.testing.assert_allclose(scores[2], expected[1:5], atol=1e-5)


async def test_log_probabilities_are_those_of_the_temperature_sampled_at(
    engine: VllmEngine, policies: list[tuple[torch.nn.Module, Path]]
) -> None:
    prompt = [9, 10]
    completion = await engine.generate(Request(prompt, 30, seed=2, temperature=0.5))
    ids = torch.tensor([prompt + completion.token_ids.tolist()])
    with torch.no_grad():
        logits = policies[0][0](input_ids=ids).logits[0, len(prompt) - 1 : -1] / 0.5
    expected = torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]
    np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=1e-5)


async def test_the_answer_depends_on_the_seed_and_not_on_the_company(engine: VllmEngine) -> None:
    alone = await engine.generate(Request([3, 4], 40, seed=7))
    crowd = [engine.generate(Request([3, 4 + index], 40, seed=100 + index)) for index in range(30)]
    together, other, *_ = await asyncio.gather(
        engine.generate(Request([3, 4], 40, seed=7)), engine.generate(Request([3, 4], 40, seed=8)), *crowd
    )
    assert together.token_ids.tolist() == alone.token_ids.tolist()
    assert other.token_ids.tolist() != alone.token_ids.tolist()


async def test_a_stop_string_ends_the_completion_with_the_token_that_completes_it(
    engine: VllmEngine, model: Path
) -> None:
    tokenizer = ModelTokenizer(str(model))
    free = await engine.generate(Request([3, 4], 60, seed=7))
    stop = tokenizer.decode(free.token_ids[20:21].tolist())
    stopped = await engine.generate(Request([3, 4], 60, seed=7, stop=(stop,)))
    assert stopped.finish_reason is FinishReason.STOP
    assert free.finish_reason is FinishReason.LENGTH
    length = len(stopped.token_ids)
    assert length <= 21
    assert stopped.token_ids.tolist() == free.token_ids[:length].tolist()
    assert stopped.text.endswith(stop)


async def test_a_prompt_that_leaves_no_room_is_refused_and_the_engine_unharmed(engine: VllmEngine) -> None:
    with pytest.raises(EngineError, match="leaves room for 56 of the 100"):
        await engine.generate(Request([1] * 200, 100, seed=0))
    with pytest.raises(EngineError, match="vLLM refused a request"):
        await engine.generate(Request([VOCABULARY + 5], 4, seed=0))
    assert len((await engine.generate(Request([1], 4, seed=0))).token_ids) == 4


async def test_each_token_in_flight_across_publications_is_of_the_version_it_claims(
    engine: VllmEngine, policies: list[tuple[torch.nn.Module, Path]]
) -> None:
    """Requests share a cached prefix, start before the first publication and end after the last."""
    shared = [7, 8, 9, 10] * 8
    prompts = [[*shared, index] for index in range(24)]
    await engine.generate(Request(shared, 4, seed=0))  # its keys and values are cached under version 0
    tasks = [asyncio.create_task(engine.generate(Request(p, 200, seed=i))) for i, p in enumerate(prompts)]
    for version in range(1, VERSIONS):
        await asyncio.sleep(0.2)
        await engine.publish(version, policies[version][1])
    completions = await asyncio.gather(*tasks)
    seen = set(np.concatenate([completion.versions for completion in completions]).tolist())
    assert len(seen) >= 2, "the machine was too slow or too fast for versions to mix"
    for prompt, completion in zip(prompts, completions, strict=True):
        assert (np.diff(completion.versions) >= 0).all()
        for version in set(completion.versions.tolist()):
            assert error(policies[version][0], prompt, completion, version) < 1e-5


async def test_after_a_publication_no_cached_prefix_of_the_old_version_is_used(
    engine: VllmEngine, policies: list[tuple[torch.nn.Module, Path]]
) -> None:
    prompt = [11, 12, 13, 14] * 10
    for version in (1, 2):
        await engine.publish(version, policies[version][1])
        completion = await engine.generate(Request(prompt, 20, seed=3))
        assert set(completion.versions.tolist()) == {version}
        assert error(policies[version][0], prompt, completion, version) < 1e-5


async def test_the_saved_adapter_serves_in_vllm_s_own_lora_format(
    model: Path, policies: list[tuple[torch.nn.Module, Path]]
) -> None:
    """What a run leaves behind loads in plain vLLM and in plain PEFT alike."""
    adapter = policies[1][1].with_suffix("")
    script = (
        "import os, sys\n"
        "os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING='0', TORCH_COMPILE_DISABLE='1', VLLM_CPU_KVCACHE_SPACE='1')\n"
        "from vllm import LLM, SamplingParams\n"
        "from vllm.lora.request import LoRARequest\n"
        "llm = LLM(sys.argv[1], dtype='float32', enforce_eager=True, enable_lora=True, max_lora_rank=8,"
        " max_model_len=64)\n"
        "greedy = SamplingParams(max_tokens=12, temperature=0)\n"
        "lora = LoRARequest('a', 1, sys.argv[2])\n"
        "out = llm.generate({'prompt_token_ids': [5, 6, 7, 8]}, greedy, lora_request=lora)[0].outputs[0]\n"
        "print('TOKENS', *out.token_ids)\n"
    )
    result = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script, model, adapter], capture_output=True, text=True, timeout=300
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("TOKENS")]
    assert lines, result.stderr[-2000:]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(adapter)).eval()
    expected = plain.generate(input_ids=torch.tensor([[5, 6, 7, 8]]), max_new_tokens=12, do_sample=False)[0, 4:]
    assert [int(token) for token in lines[0].split()[1:]] == expected.tolist()


async def test_a_killed_engine_is_reported_as_dead_and_its_log_is_named(model: Path) -> None:
    before = set(engines(os.getpid()))
    doomed = VllmEngine.start(str(model), EngineOptions(max_model_tokens=128))
    (child,) = set(engines(os.getpid())) - before
    request = asyncio.create_task(doomed.generate(Request([1, 2], 100, seed=0)))
    await asyncio.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    with pytest.raises(EngineDeadError, match="its log is"):
        await request
    await doomed.close()


async def test_an_engine_dies_with_the_process_that_started_it(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio, sys, time\n"
        "from treeopo.engines.in_process import VllmEngine\n"
        "from treeopo.engines.settings import EngineOptions\n"
        "async def main():\n"
        "    engine = VllmEngine.start(sys.argv[1], EngineOptions(max_model_tokens=64))\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(100)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, str(script), str(model)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert await asyncio.to_thread(parent.stdout.readline) == "ready\n"
    orphans = engines(parent.pid)
    assert orphans
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(map(is_alive, orphans)) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    assert not any(map(is_alive, orphans))


async def test_a_model_with_fewer_positions_than_asked_for_is_refused_before_anything_starts(model: Path) -> None:
    with pytest.raises(ModelError, match=r"reads 512 tokens, fewer than the 4096 asked for"):
        VllmEngine.start(str(model), EngineOptions(max_model_tokens=4096))
