#!/usr/bin/env bash
# All checks that need an NVIDIA GPU, in one command, with nothing downloaded and in under 10 minutes:
# build, GPU tests of the compiled, NVRTC's and Triton's kernels, compute-sanitizer, benchmarks. A part that
# fails is reported and the rest goes on.
#
#   bench/gpu_check.sh [--out DIR]     writes DIR/<gpu>-<date>.json (default bench/results)
#
# Needs python with torch, cupy, setuptools, pybind11, ninja, pytest, pytest-benchmark; nvcc.
set -u
cd "$(dirname "$0")/.." || exit 1
out=bench/results
if [ "${1:-}" = "--out" ]; then
  [ -n "${2:-}" ] || { echo "gpu_check.sh: --out needs a folder" >&2; exit 2; }
  out=$2
elif [ $# -gt 0 ]; then
  echo "gpu_check.sh: expected [--out DIR], got: $*" >&2
  exit 2
fi
mkdir -p "$out" && [ -w "$out" ] || { echo "gpu_check.sh: cannot write to $out" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 CUPY_CACHE_DIR=$work/kernels

# part NAME SECONDS COMMAND...: runs it under a time limit and records how it ended.
part() {
  local name=$1 limit=$2 start status
  shift 2
  start=$SECONDS
  echo "== $name" >&2
  timeout "$limit" "$@" >"$work/$name.log" 2>&1
  status=$?
  printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - start))" >>"$work/parts.tsv"
  [ $status -eq 0 ] || tail -n 25 "$work/$name.log" >&2
}

gpu_tests=(python -m pytest tests/ops -m gpu -q -p no:cacheprovider --benchmark-disable)
sanitized=("${gpu_tests[@]}" -k "cuda and not properties and (ragged or top_k_small or ties or tiny_noise)")
part build 130 env DD2_FAST_CUDA=1 python setup.py -q build_ext --inplace
part tests 55 "${gpu_tests[@]}" -k "not cupy and not triton and not properties"
usable='import dd2_fast.ops as ops; raise SystemExit(ops.available_backends("cuda")["cupy"])'
part cupy 60 bash -c 'python -c "$0" && "$@"' "$usable" "${gpu_tests[@]}" \
  -k "cupy and not properties and not (flow_solve and float16)"
# Triton compiles every variant on its first call, about a second each.
part triton 105 "${gpu_tests[@]}" -k "triton and not properties and not bfloat16 \
  and not (tiles and dense) and not (flow_solve and (euler or float16))"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    part "$tool" 35 compute-sanitizer --tool "$tool" --error-exitcode 9 "${sanitized[@]}"
  done
else
  printf 'sanitizer\tmissing\t0\n' >>"$work/parts.tsv"
fi
part bench 145 python -m pytest bench -q -p no:cacheprovider -k "cuda" --benchmark-only \
  --benchmark-json="$work/bench.json"
python bench/gpu_summary.py "$work" "$out"
