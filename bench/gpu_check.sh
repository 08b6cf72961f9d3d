#!/usr/bin/env bash
# All checks that need an NVIDIA GPU, in one command, with nothing downloaded and in under 9 minutes:
# build, GPU tests of the compiled, NVRTC's and Triton's kernels, of sampling and training, compute-sanitizer,
# benchmarks. A part that fails or runs out of time is reported and the rest goes on.
#
#   bench/gpu_check.sh [--out DIR] [PART...]
#
# writes DIR/<gpu>-<date>.json (default bench/results) and what the parts printed, DIR/gpu_check.log. With PARTs
# only these, and what they need is there from an earlier run: build tests cupy triton models memcheck racecheck
# operators training sampling more.
#
# Needs python with torch, cupy, setuptools, pybind11, ninja, pytest, pytest-benchmark; nvcc. pytest-xdist makes
# the tests of kernels compiled at run time end in their time.
set -u
out=
if [ "${1:-}" = "--out" ]; then
  [ -n "${2:-}" ] || { echo "gpu_check.sh: --out needs a folder" >&2; exit 2; }
  out=$2
  shift 2
fi
known=" build tests cupy triton models memcheck racecheck operators training sampling more "
for name in "$@"; do
  [[ $known == *" $name "* ]] || { echo "gpu_check.sh: expected parts of$known, got: $name" >&2; exit 2; }
done
wanted=" ${*:-$known} "
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
out=${out:-$root/bench/results}
mkdir -p "$out" && [ -w "$out" ] || { echo "gpu_check.sh: cannot write to $out" >&2; exit 2; }
out=$(cd "$out" && pwd)
cd "$root" || exit 1
work=$(mktemp -d)
: >"$work/parts.tsv"
# The log grows part by part and the table is made however this ends, but by a kill.
: >"$out/gpu_check.log"
trap 'python bench/gpu_summary.py "$work" "$out"; status=$?; rm -rf "$work"; exit $status' EXIT
trap 'exit 1' INT TERM
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 CUPY_CACHE_DIR=$work/kernels
end=525 # seconds after the start, when the last benchmark must be over

# part NAME SECONDS COMMAND...: runs it under a time limit and records how it ended.
part() {
  local name=$1 limit=$2 start status
  shift 2
  [[ $wanted == *" $name "* ]] || return 0
  start=$SECONDS
  echo "== $name" >&2
  timeout -k 5 "$limit" "$@" >"$work/$name.log" 2>&1
  status=$?
  printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - start))" >>"$work/parts.tsv"
  { echo "== $name: $status, $((SECONDS - start)) s"; tail -c 1000000 "$work/$name.log"; } >>"$out/gpu_check.log"
  [ $status -eq 0 ] || tail -n 25 "$work/$name.log" >&2
}

# bench NAME SECONDS ARGUMENTS...: benchmarks that begin nothing new in the last half minute; what is measured
# by then is written, also where the limit stops one.
bench() {
  local name=$1 limit=$2
  shift 2
  part "$name" "$limit" python -m pytest -q -p no:cacheprovider --benchmark-only \
    --bench-budget=$((limit - 30)) --benchmark-json="$work/$name.json" "$@"
}

gpu_tests=(python -m pytest tests/ops -m gpu -q -p no:cacheprovider --benchmark-disable)
sanitized=("${gpu_tests[@]}" -k "cuda and not properties and (ragged or top_k_small or ties or tiny_noise)")
# For this GPU alone: the others' code would not run here, and takes three times as long.
arch=$(python -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9))') ||
  arch=90a
part build 90 env DD2_FAST_CUDA=1 DD2_FAST_CUDA_ARCHS="$arch" python setup.py -q build_ext --inplace
part tests 40 "${gpu_tests[@]}" -k "not cupy and not triton and not properties"
# Both compile every variant on its first call. Triton's are 240, about a second each: more than its time for one
# process.
workers=()
python -c 'import xdist' >/dev/null 2>&1 && workers=(-n 12)
usable='import dd2_fast.ops as ops; raise SystemExit(ops.available_backends("cuda")["cupy"])'
part cupy 45 bash -c 'python -c "$0" && "$@"' "$usable" "${gpu_tests[@]}" "${workers[@]}" \
  -k "cupy and not properties and not (flow_solve and float16)"
part triton 80 "${gpu_tests[@]}" "${workers[@]}" -k "triton and not properties and (not bfloat16 or ragged) \
  and not (tiles and dense) and not (flow_solve and (euler or float16))"
part models 60 python -m pytest tests/sampling tests/training -m gpu -q -p no:cacheprovider
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    part "$tool" 30 compute-sanitizer --tool "$tool" --error-exitcode 9 "${sanitized[@]}"
  done
else
  [[ $wanted == *check* ]] && printf 'sanitizer\tmissing\t0\n' >>"$work/parts.tsv"
fi
# What matters most comes first; what is left of the time goes to the rest.
operators=(bench/bench_{conditional_score,csd_loss,sample_code,nearest_code}.py)
bench operators $(((end - SECONDS) * 40 / 100)) "${operators[@]}" -k "cuda and (filtered or nearest)"
bench training $(((end - SECONDS) * 45 / 100)) bench/bench_training.py -k "cuda and (d16 or llamagen_l)"
bench sampling $(((end - SECONDS) * 50 / 100)) bench/bench_sampling.py -m "slow or not slow"
more=(bench/bench_{attention,flow_solve,linear_conditional_score,scaling}.py)
bench more $((end - SECONDS)) "${more[@]}" -k "cuda and not tiny"
