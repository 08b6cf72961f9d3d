#!/usr/bin/env bash
# All checks that need an NVIDIA GPU, in one command, with nothing downloaded and in under 9 minutes:
# build, GPU tests of the compiled, NVRTC's and Triton's kernels, of sampling and training, compute-sanitizer,
# benchmarks. A part that fails or runs out of time is reported and the rest goes on.
#
#   bench/gpu_check.sh [--out DIR] [PART...]
#
# writes DIR/<gpu>-<date>.json (default bench/results; a later run writes -2, -3, ... beside it) and adds what the
# parts printed to DIR/gpu_check.log. With PARTs only these, and what they need is there from an earlier run: build
# tests cupy triton models memcheck racecheck synccheck initcheck operators training forward sampling more.
#
# Needs python3 with torch, cupy, setuptools, pybind11, ninja, pytest, pytest-benchmark; nvcc. pytest-xdist makes
# the tests end in their time.
set -u
out=
if [ "${1:-}" = "--out" ]; then
  [ -n "${2:-}" ] || { echo "gpu_check.sh: --out needs a folder" >&2; exit 2; }
  out=$2
  shift 2
fi
known=" build tests cupy triton models memcheck racecheck synccheck initcheck operators training forward sampling more "
for name in "$@"; do
  [[ $known == *" $name "* ]] || { echo "gpu_check.sh: expected parts of$known, got: $name" >&2; exit 2; }
done
wanted=" ${*:-$known} "
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
out=${out:-$root/bench/results}
mkdir -p "$out" && [ -w "$out" ] || { echo "gpu_check.sh: cannot write to $out" >&2; exit 2; }
out=$(cd "$out" && pwd)
cd "$root" || exit 1
missing=$(python3 -c 'import importlib.util as u
names = "torch cupy setuptools pybind11 ninja pytest pytest_benchmark xdist hypothesis safetensors PIL tqdm".split()
print(*(name for name in names if u.find_spec(name) is None))') || exit 1
[ -z "$missing" ] || echo "gpu_check.sh: python3 has no $missing: what needs it is skipped or fails" >&2
work=$(mktemp -d)
: >"$work/parts.tsv"
# The log grows part by part and the table is made however this ends, but by a kill.
: >>"$out/gpu_check.log"
trap 'record $known; python3 bench/tools/gpu_summary.py "$work" "$out"; status=$?; rm -rf "$work"; exit $status' EXIT
trap 'exit 1' INT TERM
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 CUPY_CACHE_DIR=$work/kernels
end=525 # seconds after the start, when the last benchmark must be over

# run NAME SECONDS COMMAND...: under a time limit; what it prints and how it ends go to files.
run() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  [[ $wanted == *" $name "* ]] || return 0
  echo "== $name" >&2
  timeout -k 5 "$limit" "$@" >"$work/$name.log" 2>&1
  status=$?
  printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - start))" >"$work/$name.part"
}

# record NAME...: puts those that have run into the table and the log.
record() {
  local name status seconds
  for name in "$@"; do
    [ -f "$work/$name.part" ] || continue
    read -r _ status seconds <"$work/$name.part"
    cat "$work/$name.part" >>"$work/parts.tsv"
    rm "$work/$name.part"
    { echo "== $name: $status, $seconds s"; tail -c 1000000 "$work/$name.log"; } >>"$out/gpu_check.log"
    [ "$status" = 0 ] || { echo "== $name failed"; tail -n 25 "$work/$name.log"; } >&2
  done
}

# bench NAME SECONDS ARGUMENTS...: benchmarks that begin nothing new in the last half minute; what is measured
# by then is written, also where the limit stops one.
bench() {
  local name=$1 limit=$2
  shift 2
  run "$name" "$limit" python3 -m pytest -q -p no:cacheprovider --benchmark-only \
    --bench-budget=$((limit - 30)) --benchmark-json="$work/$name.json" "$@"
  record "$name"
}

# For this GPU alone: the others' code would not run here, and takes three times as long.
arch=$(python3 -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9))') ||
  arch=90a
run build 150 env DD2_FAST_CUDA=1 DD2_FAST_CUDA_ARCHS="$arch" python3 setup.py -q build_ext --inplace
record build

# What is only right or wrong runs side by side, so that the times have the rest. One process for each would not
# end: every variant is compiled on its first call, Triton's are 240, about a second each.
workers() { [[ " $missing " == *" xdist "* ]] || echo "-n $1"; }
gpu_tests=(python3 -m pytest -m gpu -q -p no:cacheprovider --benchmark-disable)
# with BACKEND COMMAND...: fails with the reason where the backend cannot run, and all would be skipped.
reason='import sys, dd2_fast.ops as ops; raise SystemExit(ops.available_backends("cuda")[sys.argv[1]])'
with=(bash -c 'python3 -c "$0" "$1" && "${@:2}"' "$reason")
side=(tests cupy triton models memcheck racecheck synccheck initcheck)
export OMP_NUM_THREADS=2 TORCHINDUCTOR_COMPILE_THREADS=1
run tests 120 "${with[@]}" cuda "${gpu_tests[@]}" $(workers 4) tests/ops \
  -k "not cupy and not triton and not properties" &
run cupy 120 "${with[@]}" cupy "${gpu_tests[@]}" $(workers 3) tests/ops \
  -k "cupy and not properties and not (flow_solve and float16)" &
run triton 120 "${with[@]}" triton "${gpu_tests[@]}" $(workers 5) tests/ops -k "triton and not properties \
  and (not bfloat16 or ragged) and not (tiles and dense) and not (flow_solve and (euler or float16))" &
run models 120 "${with[@]}" triton "${gpu_tests[@]}" $(workers 4) tests/sampling tests/training &
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    # initcheck has to see what torch's kernels write.
    only=()
    [ $tool = initcheck ] || ! compute-sanitizer --help | grep -q -e --kernel-name || only=(--kernel-name kns=dd2)
    # torch asks the driver what it may not know, which is no error of a kernel.
    [ $tool != memcheck ] || only+=(--report-api-errors no)
    # Every tensor an allocation of its own: beyond its end is beyond what may be read.
    run $tool 120 "${with[@]}" cuda env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool $tool --error-exitcode 9 "${only[@]}" "${gpu_tests[@]}" tests/ops \
      -k "cuda and not cupy and not triton and not properties and not linear \
      and (ragged or top_k_small or ties or tiny_noise or many_draws or narrow)" &
  done
else
  [[ $wanted == *check* ]] && printf 'sanitizer\tmissing\t0\n' >>"$work/parts.tsv"
fi
wait
unset OMP_NUM_THREADS TORCHINDUCTOR_COMPILE_THREADS
record "${side[@]}"

# What matters most comes first; what is left of the time goes to the rest.
operators=(bench/bench_{conditional_score,csd_loss,sample_code,nearest_code}.py)
bench operators $(((end - SECONDS) * 40 / 100)) "${operators[@]}" -k "cuda and (filtered or nearest)"
bench training $(((end - SECONDS) * 45 / 100)) bench/bench_training.py -k "cuda and (d16 or llamagen_l)"
parts=(bench/bench_{forward,attention,add_norm_modulate,group_norm_silu}.py)
bench forward $(((end - SECONDS) * 50 / 100)) "${parts[@]}" -k "cuda and not tiny"
bench sampling $(((end - SECONDS) * 50 / 100)) bench/bench_sampling.py -m "slow or not slow"
more=(bench/bench_{batching,flow_solve,image_normal,linear_conditional_score,logit_distillation_loss,scaling}.py)
bench more $((end - SECONDS)) "${more[@]}" -k "cuda and not tiny"
