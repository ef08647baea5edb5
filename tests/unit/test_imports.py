"""What is cheap to import stays cheap: no heavy package before a command needs it."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "vllm", "zarr", "transformers", "numba")


def loaded_by(statement: str, packages: tuple[str, ...]) -> list[str]:
    code = f"import sys\n{statement}\nprint([name for name in {packages!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(eval(result.stdout.strip().splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import treeopo",
        "import treeopo.config",
        "import treeopo_cli.main",
        "from typer.testing import CliRunner as C; from treeopo_cli.main import app; C().invoke(app, ['eval', '-h'])",
    ],
)
def test_help_and_settings_load_no_heavy_package_and_no_event_loop(statement: str) -> None:
    assert loaded_by(statement, (*HEAVY, "asyncio")) == []


@pytest.mark.parametrize("statement", ["import treeopo.tree", "import treeopo.advantage"])
def test_the_pure_rooms_load_no_engine_store_or_event_loop(statement: str) -> None:
    assert loaded_by(statement, ("torch", "vllm", "zarr", "asyncio")) == []


def test_the_store_stands_alone() -> None:
    assert loaded_by("import treeopo_storage", ("torch", "vllm", "treeopo", "zarr")) == []
