"""The server engine against a fake vLLM server: what it sends, what it believes, and what it refuses to start on.

The fake answers with token 10 + v for version v, so a completion shows which policy made it.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from tests.tiny_models import byte_tokenizer
from treeopo.engines.http import ServerClient
from treeopo.engines.server import ServerEngine
from treeopo.engines.server_checks import inspect_server
from treeopo.engines.server_settings import ServerSettings
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.errors import EngineDeadError, EngineError, ModelError
from treeopo.records import FinishReason, Request, WeightFormat

BASE = "served-name"
OPTIONS = EngineOptions(max_model_tokens=100, server=ServerSettings(lost_seconds=0.01))


class FakeVllm:
    """The endpoints that are used, as vLLM 0.32 answers them."""

    def __init__(self, **flags: bool) -> None:
        self.flags = {"lora": True, "dev": True, "scale_out": True, "processed": True, "token_ids": True} | flags
        self.length = 128
        self.cut: int | None = None
        self.adapters: dict[str, int] = {}
        self.weights = ("default", 0)
        self.pending = 0
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.gate: asyncio.Event | None = None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        self.paths.append(request.url.path)
        routes: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/health": lambda body: {},
            "/v1/models": lambda body: {"data": [{"id": BASE, "max_model_len": self.length, "parent": None}]},
            "/tokenize": lambda body: {"tokens": byte_tokenizer().encode(body["prompt"], add_special_tokens=False)},
            "/v1/completions": self.complete,
        }
        if self.flags["lora"]:
            routes |= {"/v1/load_lora_adapter": self.load, "/v1/unload_lora_adapter": self.unload}
        if self.flags["scale_out"]:
            routes |= {"/inference/v1/generate": self.tokens}
        if self.flags["dev"]:
            transfer = {"weight_transfer_config": {"backend": "treeopo_file"}}
            routes |= {"/server_info": lambda body: {"vllm_config": transfer}, "/update_weights": self.update}
            routes |= {"/finish_weight_update": self.finish}
            routes |= {"/weight_info": lambda body: {"weight_version": self.weights[0]}}
            routes |= dict.fromkeys(
                ("/pause", "/start_weight_update", "/reset_prefix_cache", "/resume"), lambda body: {}
            )
        if request.url.path not in routes:
            return httpx.Response(404, json={"detail": "Not Found"})
        body["weights_at_admission"] = self.weights
        if self.gate and request.url.path in ("/v1/completions", "/inference/v1/generate"):
            await self.gate.wait()
        answer = routes[request.url.path](body)
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    def complete(self, body: dict[str, Any]) -> Any:
        self.bodies.append({name: value for name, value in body.items() if name != "weights_at_admission"})
        if body["model"] not in {BASE, *self.adapters}:
            return error(404, f"The model `{body['model']}` does not exist.")
        spread = 1 / body["temperature"] if self.flags["processed"] else 1.0
        ids = [10 + self.adapters.get(body["model"], 0)] * (self.cut or body["max_tokens"])
        top = [{f"token_id:{token}": -spread * token for token in range(3)} for _ in ids]
        choice = {
            "text": "x" * len(ids),
            "finish_reason": "length",
            "token_ids": ids if self.flags["token_ids"] else None,
        }
        return {"choices": [choice | {"logprobs": {"token_logprobs": [-0.5] * len(ids), "top_logprobs": top}}]}

    def tokens(self, body: dict[str, Any]) -> Any:
        if "token_ids" not in body:
            return error(422, "token_ids: field required")
        label, version = self.weights
        count = body["sampling_params"]["max_tokens"]
        spans = [
            {"version": body["weights_at_admission"][0], "start": 0, "end": 1},
            {"version": label, "start": 1, "end": count},
        ]
        content = [{"token": "x", "logprob": -0.25}] * count
        choice = {"text": "x", "finish_reason": "stop", "token_ids": [10 + version] * count, "weight_versions": spans}
        return {"choices": [choice | {"logprobs": {"content": content}}]}

    def load(self, body: dict[str, Any]) -> Any:
        path = Path(body["lora_path"])
        if not path.is_dir():
            return error(404, f"Loading lora {body['lora_name']} failed: No adapter found for {path}")
        assert body["lora_name"] not in self.adapters, "a name is never used twice"
        self.adapters[body["lora_name"]] = int(path.name)
        return {}

    def unload(self, body: dict[str, Any]) -> Any:
        del self.adapters[body["lora_name"]]
        return {}

    def update(self, body: dict[str, Any]) -> Any:
        path = Path(body["update_info"]["path"])
        self.pending = int(path.stem)
        return {} if path.exists() else error(500, f"No such file: {path}")

    def finish(self, body: dict[str, Any]) -> Any:
        self.weights = (body["weight_version"], self.pending)
        return {}


def error(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message}})


def client(server: FakeVllm) -> ServerClient:
    return ServerClient("http://fake", OPTIONS.server, 8, transport=httpx.MockTransport(server))


def engine(server: FakeVllm, weight_format: WeightFormat, tempered: bool = True) -> ServerEngine:
    return ServerEngine(client(server), BASE, OPTIONS, weight_format, tempered=tempered)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.fixture
def policies(tmp_path: Path) -> Callable[[WeightFormat, int], Path]:
    def path(weight_format: WeightFormat, version: int) -> Path:
        if weight_format is WeightFormat.ADAPTER:
            found = tmp_path / str(version)
            found.mkdir(exist_ok=True)
        else:
            found = tmp_path / f"{version}.safetensors"
            found.touch()
        return found

    return path


async def test_every_parameter_that_shapes_the_distribution_is_sent() -> None:
    server = FakeVllm()
    completion = await engine(server, WeightFormat.ADAPTER).generate(Request([1, 2], 3, seed=9, stop=("\n\n",)))
    assert server.bodies == [
        {
            "model": BASE, "prompt": [1, 2], "return_token_ids": True, "max_tokens": 3, "temperature": 1.0, "seed": 9,
            "stop": ["\n\n"], "include_stop_str_in_output": True, "logprobs": 0, "top_p": 1.0, "top_k": 0,
            "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        }
    ]  # fmt: skip
    assert completion.token_ids.tolist() == [10, 10, 10]
    assert completion.logprobs.tolist() == [-0.5] * 3
    assert completion.versions.tolist() == [0, 0, 0]
    assert completion.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("weight_format", list(WeightFormat))
async def test_after_a_publication_tokens_are_of_that_version_and_say_so(
    weight_format: WeightFormat, policies: Callable[[WeightFormat, int], Path]
) -> None:
    served = engine(FakeVllm(), weight_format)
    for version in (0, 1, 2, 7):
        if version:
            await served.publish(version, policies(weight_format, version))
        completion = await served.generate(Request([1], 4, seed=0))
        assert completion.token_ids.tolist() == [10 + version] * 4
        assert completion.versions.tolist() == [version] * 4


async def test_an_adapter_s_request_keeps_its_version_and_its_adapter_until_it_is_answered(
    policies: Callable[[WeightFormat, int], Path],
) -> None:
    server = FakeVllm()
    served = engine(server, WeightFormat.ADAPTER)
    await served.publish(1, policies(WeightFormat.ADAPTER, 1))
    server.gate = asyncio.Event()
    waiting = asyncio.create_task(served.generate(Request([1], 4, seed=0)))
    await asyncio.sleep(0.01)
    await served.publish(2, policies(WeightFormat.ADAPTER, 2))
    assert sorted(server.adapters.values()) == [1, 2]
    server.gate.set()
    completion = await waiting
    assert (completion.versions[0], completion.token_ids[0]) == (1, 11)
    await served.publish(3, policies(WeightFormat.ADAPTER, 3))
    assert list(server.adapters.values()) == [3]
    await served.close()
    assert server.adapters == {}


async def test_merged_weights_reach_a_request_in_flight_and_each_token_says_which_made_it(
    policies: Callable[[WeightFormat, int], Path],
) -> None:
    server = FakeVllm()
    served = engine(server, WeightFormat.MERGED)
    server.gate = asyncio.Event()
    waiting = asyncio.create_task(served.generate(Request([1], 4, seed=0)))
    await asyncio.sleep(0.01)
    for version in (1, 2, 3):
        await served.publish(version, policies(WeightFormat.MERGED, version))
    server.gate.set()
    assert (await waiting).versions.tolist() == [0, 3, 3, 3]


async def test_two_runs_on_one_server_do_not_take_each_other_s_names(
    policies: Callable[[WeightFormat, int], Path],
) -> None:
    server = FakeVllm()
    for _ in range(2):
        await engine(server, WeightFormat.ADAPTER).publish(1, policies(WeightFormat.ADAPTER, 1))
    assert len(server.adapters) == 2


@pytest.mark.parametrize("weight_format", list(WeightFormat))
async def test_a_restarted_server_is_dead_rather_than_believed(
    weight_format: WeightFormat, policies: Callable[[WeightFormat, int], Path]
) -> None:
    server = FakeVllm()
    served = engine(server, weight_format)
    await served.publish(1, policies(weight_format, 1))
    server.adapters, server.weights = {}, ("default", 0)
    with pytest.raises(EngineDeadError, match="restarted"):
        await served.generate(Request([1], 4, seed=0))


async def test_weights_of_another_run_are_not_taken_for_the_base_model() -> None:
    server = FakeVllm()
    server.weights = ("another-run-3", 3)
    with pytest.raises(EngineDeadError, match=r"did not publish .another-run-3.; .* another run uses it"):
        await engine(server, WeightFormat.MERGED).generate(Request([1], 4, seed=0))


async def test_a_policy_that_the_server_cannot_see_is_refused_in_one_line(tmp_path: Path) -> None:
    served = engine(FakeVllm(), WeightFormat.ADAPTER)
    with pytest.raises(EngineError, match=r"did not take policy version 5: .*No adapter found.*must see") as caught:
        await served.publish(5, tmp_path / "5")
    assert not isinstance(caught.value, EngineDeadError)
    assert (await served.generate(Request([1], 1, seed=0))).versions[0] == 0
    with pytest.raises(EngineDeadError, match="No such file"):
        await engine(FakeVllm(), WeightFormat.MERGED).publish(5, tmp_path / "5.safetensors")


async def test_a_completion_that_the_server_cut_is_no_completion() -> None:
    server = FakeVllm()
    server.cut = 2
    with pytest.raises(EngineError, match=r"cut a completion at 2 of 9 tokens.*--generation-config vllm"):
        await engine(server, WeightFormat.ADAPTER).generate(Request([1], 9, seed=0))


async def test_a_prompt_without_room_is_refused_before_it_is_sent() -> None:
    server = FakeVllm()
    with pytest.raises(EngineError, match="a prompt of 60 tokens leaves room for 40 of the 50"):
        await engine(server, WeightFormat.ADAPTER).generate(Request([1] * 60, 50, seed=0))
    assert server.paths == []


async def test_a_temperature_is_refused_where_log_probabilities_leave_it_out() -> None:
    served = engine(FakeVllm(processed=False), WeightFormat.ADAPTER, tempered=False)
    await served.generate(Request([1], 2, seed=0, temperature=1.0))
    with pytest.raises(EngineError, match="--logprobs-mode processed_logprobs"):
        await served.generate(Request([1], 2, seed=0, temperature=0.7))


async def test_a_cancelled_request_is_no_longer_in_flight(policies: Callable[[WeightFormat, int], Path]) -> None:
    server = FakeVllm()
    served = engine(server, WeightFormat.ADAPTER)
    await served.publish(1, policies(WeightFormat.ADAPTER, 1))
    server.gate = asyncio.Event()
    waiting = asyncio.create_task(served.generate(Request([1], 4, seed=0)))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await served.publish(2, policies(WeightFormat.ADAPTER, 2))
    assert list(server.adapters.values()) == [2]


@pytest.mark.parametrize("processed", [True, False])
async def test_whether_log_probabilities_have_the_temperature_in_them_is_found_out(model: str, processed: bool) -> None:
    found = await inspect_server(client(FakeVllm(processed=processed)), model, OPTIONS, None)
    assert (found.model, found.tempered) == (BASE, processed)


@pytest.mark.parametrize(
    ("flags", "publish", "expected"),
    [
        ({}, "auto", WeightFormat.ADAPTER),
        ({}, "merged", WeightFormat.MERGED),
        ({"lora": False}, "auto", WeightFormat.MERGED),
        ({"dev": False, "scale_out": False}, "auto", WeightFormat.ADAPTER),
    ],
)
async def test_policies_travel_as_asked_or_else_as_the_server_can_take_them(
    model: str, flags: dict[str, bool], publish: Literal["auto", "merged"], expected: WeightFormat
) -> None:
    options = replace(OPTIONS, publish=publish)
    assert (await inspect_server(client(FakeVllm(**flags)), model, options, Adapters(16, 3))).weight_format is expected


@pytest.mark.parametrize(
    ("lacking", "publish", "words"),
    [
        (["lora"], "adapter", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora$"),
        (["dev"], "merged", "start it with VLLM_SERVER_DEV_MODE=1, --enable-scale-out and --weight-transfer-config"),
        (["scale_out"], "merged", "--enable-scale-out"),
        (["lora", "dev"], "auto", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora, or VLLM_SERVER_DEV_MODE=1"),
    ],
)
async def test_a_server_that_takes_no_policies_is_refused_with_the_flags_to_start_it_with(
    model: str, lacking: list[str], publish: Literal["auto", "merged", "adapter"], words: str
) -> None:
    server = client(FakeVllm(**dict.fromkeys(lacking, False)))
    await inspect_server(server, model, OPTIONS, None)  # whoever publishes nothing needs nothing
    with pytest.raises(ModelError, match=words):
        await inspect_server(server, model, replace(OPTIONS, publish=publish), Adapters(16, 3))


async def test_a_server_that_gives_no_token_ids_is_refused(model: str) -> None:
    with pytest.raises(EngineError, match="a vLLM server"):
        await inspect_server(client(FakeVllm(token_ids=False)), model, OPTIONS, None)


async def test_weights_that_an_earlier_run_left_are_noticed_at_the_start(model: str) -> None:
    server = FakeVllm()
    server.weights = ("another-run-3", 3)
    with pytest.raises(ModelError, match=r"still has the weights that another run published \(another-run-3\)"):
        await inspect_server(client(server), model, OPTIONS, None)


async def test_a_server_that_reads_too_little_is_refused(model: str) -> None:
    server = FakeVllm()
    server.length = 64
    with pytest.raises(ModelError, match=r"reads 64 tokens, fewer than the 100 asked for: .*--max-model-len 100"):
        await inspect_server(client(server), model, OPTIONS, None)


async def test_a_server_with_another_tokenizer_is_refused(model: str) -> None:
    server = client(FakeVllm())
    body = {"tokens": [1, 2, 3]}

    async def another(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=body) if request.url.path == "/tokenize" else await FakeVllm()(request)

    server = ServerClient("http://fake", OPTIONS.server, 8, transport=httpx.MockTransport(another))
    with pytest.raises(ModelError, match="tokenizes otherwise"):
        await inspect_server(server, model, OPTIONS, None)


async def test_what_is_not_vllm_is_refused(model: str) -> None:
    def page(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>hello</html>")

    server = ServerClient("http://fake", OPTIONS.server, 8, transport=httpx.MockTransport(page))
    with pytest.raises(ModelError, match="must be a vLLM server"):
        await inspect_server(server, model, OPTIONS, None)


async def test_a_server_that_is_not_there_is_named(model: str) -> None:
    with pytest.raises(EngineDeadError, match=r"http://127.0.0.1:9 is lost: ConnectError"):
        await ServerEngine.start("http://127.0.0.1:9", model, OPTIONS)
