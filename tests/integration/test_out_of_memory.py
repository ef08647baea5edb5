"""Under a real limit on its address space a learner's step runs out of memory, goes on, and has the same gradient."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_models import random_qwen2

STEP = """
import json, resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from tests.gradients import step
from tests.unit.test_packing import SETTINGS, distance, policy
from treeopo.learner.learner import Learner
from treeopo.learner.losses.cross_entropy import CrossEntropy
from treeopo.learner.room import release, return_freed_blocks
from treeopo.records import TrainBatch, TrainSequence

torch.set_num_threads(1)
random = np.random.default_rng(0)
rows = [
    TrainSequence(random.integers(0, 257, 129).astype(np.int32), 29, *np.ones((2, 100), np.float32), np.zeros(100, int))
    for _ in range(256)
]
batch, told = TrainBatch(0, tuple(rows), {}), []
settings = replace(SETTINGS, microbatch_tokens=512, gradient_checkpointing=False)
small, _ = step(Learner(policy(sys.argv[1]), [CrossEntropy()], settings, steps=9, temperature=1.0), batch)
settings = replace(settings, microbatch_tokens=32768)
learner = Learner(policy(sys.argv[1]), [CrossEntropy()], settings, steps=9, temperature=1.0, notify=told.append)
return_freed_blocks()
release(torch.device("cpu"))
status = Path("/proc/self/status").read_text()
limit = int(status.partition("VmSize:")[2].split()[0]) * 1024 + 40 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found, metrics = step(learner, batch)
print(json.dumps({"distance": distance(found, small), "told": told, **metrics}))
"""


@pytest.mark.processes
def test_a_step_that_does_not_fit_under_ulimit_goes_on_in_smaller_micro_batches(tmp_path: Path) -> None:
    model = random_qwen2(tmp_path / "model")
    done = subprocess.run([sys.executable, "-c", STEP, model], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["distance"] < 1e-5
    assert found["learner/out_of_memory"] == len(found["told"]) >= 1
    assert all("ulimit -v leaves" in line for line in found["told"])
    assert found["learner/microbatch_tokens"] <= 4096
