"""The wheel holds the three packages, and the base install works without torch and vLLM, away from the checkout."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
ROUND_TRIP = """
import asyncio, sys
import numpy as np
from treeopo_storage import Action, ProblemTree, StoreMeta, create_store, open_store, open_writer
tree = ProblemTree(
    id="p", question="2 + 2?", answer="4", parent=np.array([-1, 0], np.int32), depth=np.array([0, 1], np.int32),
    visits=np.array([3, 3], np.int32), value_sum=np.array([1.0, 1.0]), terminal=np.array([False, True]),
    reward=np.array([np.nan, 1.0], np.float32), action=np.array([Action.ROOT, Action.STEP], np.int8),
    token_ids=np.array([5, 6, 7], np.int32), token_offsets=np.array([0, 2, 3]),
    teacher_logprobs=np.array([np.nan, np.nan, -0.5], np.float32), texts=("2 + 2?", "4"),
)
create_store("s.zarr", StoreMeta(tokenizer_fingerprint="f", teacher="t"))
with open_writer("s.zarr") as writer:
    writer.append([tree])
assert open_store("s.zarr").prefix_tokens(0, 1).tolist() == [5, 6, 7]
from treeopo.advantage import staged_advantages
assert staged_advantages([-1, 0], [0, 1], [0, 1]).satisfaction == 1.0
assert not {"torch", "vllm"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "-o", out, ROOT], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_exactly_three_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"treeopo", "treeopo_cli", "treeopo_storage"}
    assert {"treeopo/py.typed", "treeopo_cli/py.typed", "treeopo_storage/py.typed"} <= set(names)


def test_the_base_install_works_from_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True, timeout=500)
    shown = subprocess.run(
        [tmp_path / "venv" / "bin" / "treeopo", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "inspect-tree" in shown.stdout
    subprocess.run([python, "-c", ROUND_TRIP], cwd=tmp_path, check=True)
    inspected = subprocess.run(
        [tmp_path / "venv" / "bin" / "treeopo", "inspect-tree", "s.zarr", "--problem", "p"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2 + 2?" in inspected.stdout
