#!/usr/bin/env bash
# The kernels on a GPU, in one call under 9 minutes: benchmarks/gpu.sh OUT
# Their tests on the device, what the compiler makes of them there, then the comparison. OUT gets log.txt, tests.xml,
# inspect.json, fused.json and fused_compilers.json; a part that fails or runs out of time leaves the others standing, and the exit code 1.
set -uo pipefail
out=$(mkdir -p "${1:?usage: benchmarks/gpu.sh OUT}" && cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

part() { # part SECONDS NAME COMMAND...
  local limit=$1 name=$2 code=0
  shift 2
  echo "== $name: $*"
  timeout --kill-after=5 "$limit" "$@" || code=$?
  echo "== $name: exit code $code after $SECONDS s in all"
}

{
  "$python" -c 'import sys, torch, triton; print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__, torch.cuda.get_device_name())'
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,memory.total --format=csv
  part 150 tests "$python" -m pytest -q -p no:cacheprovider --junitxml="$out/tests.xml" --durations=5 \
    tests/test_kernels_sgd_update.py tests/test_kernels_mlp_adapt.py tests/test_kernels_sizes.py tests/test_engine_fused.py tests/test_engine_graphed.py
  arch=$("$python" -c 'import torch; print("sm_%d%d" % torch.cuda.get_device_capability())')
  part 45 inspect "$python" -W ignore -m lightning_maml.kernels.inspect --arch "$arch" --only LOSS=mse --json "$out/inspect.json"
  part 90 comparison "$python" -W ignore -m benchmarks.fused --device cuda --tasks 25 256 1024 4096 --rounds 11 \
    --json "$out/fused.json"
  part 210 compilers "$python" -W ignore -m benchmarks.fused --device cuda --tasks 4096 --rounds 11 --compiled \
    --json "$out/fused_compilers.json"
} 2>&1 | tee "$out/log.txt"
grep -q '^== .*: exit code [^0]' "$out/log.txt" && exit 1
exit 0
