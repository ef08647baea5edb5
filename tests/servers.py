"""A real vLLM server on the loopback for tests, ended with everything it started."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.processes import children, is_alive
from treeopo.engines.vllm_plugin import BACKEND, PARENT_VARIABLE


class Server:
    """`vllm serve` with all that publishing needs. Starting it returns at once; `wait` until it answers."""

    KEY = "sk-of-the-tests"

    def __init__(self, model: Path, log: Path, *, max_model_len: int = 256, api_key: str | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        environment = {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "TORCH_COMPILE_DISABLE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_SERVER_DEV_MODE": "1",
            PARENT_VARIABLE: str(os.getpid()),  # a killed test run, or a killed server, leaves no engine behind
        }
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
            *("--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--enforce-eager"),
            *("--max-model-len", str(max_model_len), "--no-enable-chunked-prefill", "--disable-uvicorn-access-log"),
            *("--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"),
            *("--enable-lora", "--max-lora-rank", "16", "--max-loras", "4", "--max-cpu-loras", "8"),
            *("--enable-scale-out", "--weight-transfer-config", f'{{"backend": "{BACKEND}"}}'),
        ]
        if api_key is not None:
            environment["VLLM_API_KEY"] = api_key
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
            )

    def wait(self, seconds: float = 240) -> "Server":
        deadline = time.monotonic() + seconds
        while True:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).is_success:
                    return self
            except httpx.TransportError:
                pass
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline, self._log.read_text()[-3000:]
            time.sleep(0.25)

    def kill(self) -> None:
        """As a machine that fails; its engine dies with it, or is killed."""
        below = children(self._process.pid)
        self._process.kill()
        self._process.wait()
        deadline = time.monotonic() + 10
        while any(map(is_alive, below)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in filter(is_alive, below):
            os.kill(process, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
