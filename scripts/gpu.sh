#!/usr/bin/env bash
# Everything that needs a GPU: build, tests, sanitizers, benchmark. Nothing is downloaded.
#
#   scripts/gpu.sh                all stages in order, within 9 minutes
#   scripts/gpu.sh build tests    these stages (see scripts/gpu.py)
#
# Wants nvcc and a python3 that has torch for CUDA and the TOOLS of scripts/gpu.py; PYTHON names
# another interpreter. Writes gpu.json and gpu.log to the folder OUT (runs/gpu).
# Exit status: 0 all passed, 1 some stage did not, 2 nothing was run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# torch takes the folder above that of nvcc, which may be a link or a script outside of the toolkit.
if [ -z "${CUDA_HOME:-}" ]; then
  nvcc=$(readlink -f "$(command -v nvcc)" || true)
  for home in "${nvcc%/bin/*}" /usr/local/cuda /usr/local/cuda-*; do
    if [ -e "$home/include/cuda_runtime.h" ]; then
      export CUDA_HOME="$home"
      break
    fi
  done
fi
# Where compute-sanitizer lies when only the toolkit's folder is known.
export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
exec "${PYTHON:-python3}" scripts/gpu.py --out "${OUT:-runs/gpu}" "$@"
