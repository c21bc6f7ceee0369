#!/usr/bin/env bash
# For a machine with an NVIDIA card: ggml's CUDA backend from ggml-python's source distribution, this checkout on it
# without llama-cpp-python, then the parity and speed of codecs against the machine's CPU.
#
#     benchmarks/cuda.sh [CODEC.gguf ...]       # without files: the 24 kHz DAC, random weights
#
# Settings: CUDA_ARCH (such as 86; default: the first card's), WORK (default: a new folder under /tmp, kept),
# PYTHON (default: python3), SDIST (ggml-python's .tar.gz; default: fetched with pip), JOBS (default: all cores).
set -euo pipefail
cd "$(dirname "$0")/.."
GGML_PYTHON=0.0.45 # small: 3 MB, and carries ggml 0.15.3 with its CUDA backend

step() { printf '\n== %s\n' "$*"; }
need() { command -v "$1" >/dev/null || { echo "cuda.sh: $1 is missing: $2" >&2; exit 1; }; }

need nvidia-smi "install NVIDIA's driver; this script needs a card"
PATH=$PATH:/usr/local/cuda/bin
need nvcc "install NVIDIA's CUDA toolkit and put its bin folder on the PATH"
need g++ "install a C++ compiler (Debian and Ubuntu: build-essential)"
python=${PYTHON:-python3}
need "$python" "set PYTHON to a Python of at least 3.10"
arch=${CUDA_ARCH:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')}
[[ $arch =~ ^[0-9]+[a-z]?$ ]] || { echo "cuda.sh: CUDA_ARCH is '$arch', expected digits such as 86" >&2; exit 1; }
work=${WORK:-$(mktemp -d /tmp/vocoder-cuda.XXXXXX)}
mkdir -p "$work"

step "environment: $work"
"$python" -m venv "$work/venv"
python=$work/venv/bin/python

step "ggml-python $GGML_PYTHON with CUDA for architecture $arch"
source=${SDIST:-ggml-python==$GGML_PYTHON}
CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)} $python -m pip wheel -q --no-deps --no-binary ggml-python \
    --config-settings cmake.define.GGML_CUDA=ON \
    --config-settings "cmake.define.CMAKE_CUDA_ARCHITECTURES=$arch" \
    --wheel-dir "$work" "$source"
$python -m pip install -q "$work"/ggml_python-*.whl

step "the plugin, with everything it needs but llama-cpp-python"
$python -m pip install -q --no-deps -e .
$python -c '
from importlib.metadata import requires
for line in requires("vocoder-plugin"):
    if "extra ==" not in line and not line.startswith(("llama-cpp-python", "ggml-python")):
        print(line)' >"$work/requirements.txt"
$python -m pip install -q -r "$work/requirements.txt"
$python -m vocoder_plugin.cli doctor | tee "$work/doctor.txt"
grep -q 'CUDA0' "$work/doctor.txt" || { echo "cuda.sh: this ggml has no device CUDA0" >&2; exit 1; }
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
nvcc --version | tail -n 2

step "parity and speed against this machine's CPU"
$python benchmarks/devices.py --device CUDA0 "$@" | tee "$work/results.txt"
echo "results are in $work/results.txt"
