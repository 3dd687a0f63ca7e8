#!/usr/bin/env bash
# Everything that needs a GPU, in one command and under nine minutes: build, tests, memory checks, timings.
#
#   benchmarks/gpu/run.sh [options of benchmarks/layers.py, such as --cases "conv"]
#
# No network. SPFDE_SECONDS (520): all of it. OUT: where the record goes (benchmarks/results). PYTHON: the interpreter.
set -uo pipefail
cd "$(dirname "$0")/../.."
began=$SECONDS
total=${SPFDE_SECONDS:-520}
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
export PYTHONPATH="$PWD:$PWD/benchmarks:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
failed=0

say() { printf '\nspfde: %s\n' "$*"; }
stop() { printf 'spfde: %s\n' "$*" >&2; exit 1; }
# At most so many seconds, and no more than are left.
within() {
  local most=$1 left=$((total - (SECONDS - began)))
  shift
  [ "$left" -gt 5 ] || { say "no time left for: $*"; return 1; }
  timeout --kill-after=10 "$((most < left ? most : left))" "$@"
}

"$python" -c 'import torch' 2>/dev/null || stop "expected a Python with torch, got $python without, try make setup, then PYTHON=.venv/bin/python"
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
  || stop "expected a CUDA device, got none, try nvidia-smi and a torch built for CUDA"
"$python" -c 'import spfde' || stop "expected spfde to load, got the error above"

# JetPack has an nvcc that is not on PATH. A core that was built without one, or for another GPU, is built anew where there is one.
nvcc=${CUDACXX:-$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)}
[ -z "$nvcc" ] || export CUDACXX=$nvcc
core='from spfde._native import native; native()'
[ -z "$nvcc" ] || core+='; from spfde.kernels.cuda import absence; import sys; sys.exit(absence())'
if ! "$python" -c "$core" 2>/dev/null; then
  say "building the native core"
  CUDAARCHS=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
  export CUDAARCHS
  within 120 "$python" setup.py -q build_ext --inplace \
    || say "not built (see above): going on without it, the GPU kernels need none"
fi

kernels=$("$python" -c 'from spfde.kernels import cuda, triton; print(*(name for name, why in (("triton", triton.why_not("cuda")), ("cuda", cuda.absence())) if not why))')
[ -n "$kernels" ] || stop "expected Triton or CUDA C++ kernels, got neither, try pip install triton, or CUDACXX=path/of/nvcc"
say "kernels: $kernels"

say "the smallest layers"  # what is wrong with the machine shows here; and it compiles what the memory checks run
within 60 "$python" benchmarks/smallest.py || { say "the smallest layers: failed"; failed=1; }

say "tests"
if "$python" -c 'import pytest' 2>/dev/null; then
  # Another torch than the tests' own may warn of what it will do one day. No other folder: some need the native core.
  pytest=("$python" -m pytest -q -p no:cacheprovider -o filterwarnings=default -m gpu)
  "$python" -c 'import hypothesis' 2>/dev/null || pytest+=(--noconftest)
  "$python" -c 'import xdist' 2>/dev/null && pytest+=(-n 8)  # most of their time is Triton's compiler's
  files=(tests/kernels/cuda/test_gpu.py)
  [[ $kernels != *triton* ]] || files+=(tests/gpu tests/kernels/triton/test_gpu.py tests/kernels/triton/test_gpu_fusing.py)
  within 150 "${pytest[@]}" "${files[@]}" || failed=1
else
  say "expected pytest, got none: going on without the tests"
fi

say "memory checks"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ]; then
  for tool in memcheck racecheck; do
    within 40 "$sanitizer" --tool "$tool" --error-exitcode 1 "$python" benchmarks/smallest.py || { say "$tool: failed"; failed=1; }
  done
else
  say "expected compute-sanitizer, got none: going on without"
fi

say "timings"
left=$((total - (SECONDS - began) - 15))
mkdir -p "$out"
record=$out/$("$python" -c 'import timing; print(timing.record_name(timing.machine("cuda")))')
within "$((left + 10))" "$python" benchmarks/layers.py --device cuda --seconds "$left" --json "$record" "$@" || failed=1
if [ -f "$record" ]; then
  "$python" benchmarks/targets.py "$record" || failed=1
  printf 'spfde: all of it in %s\n' "${record%.json}.md"
fi
say "done in $((SECONDS - began)) s$([ "$failed" = 0 ] || echo ', with failures')"
exit "$failed"
