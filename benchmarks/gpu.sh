#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU: tests, sanitizers, timings. From a checkout, twenty minutes in all, or part by part.
#
#     benchmarks/gpu.sh                      # all parts
#     benchmarks/gpu.sh tests kernels        # parts by name: tests sanitizer kernels networks folders training
#
# Needs a Python (PYTHON, by default python3) with torch, CuPy, onnx, onnxruntime, timm, scikit-learn, Pillow and Typer.
# Part `folders` also needs a finished run with its exported files: RUN, IMAGES and TAGS name it, and `make demo` leaves
# one. ONNX Runtime and TensorRT rows appear where onnxruntime-gpu and tensorrt are installed.
#
# Figures go to benchmarks/results/DEVICE-DATE.json, events on the device to benchmarks/results/gpu_kernels.json; then
# `make bench-tables`. A part that fails or runs out of time is named at the end, and the others still run.

set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
RUN=${RUN:-runs/demo} IMAGES=${IMAGES:-runs/sample/images} TAGS=${TAGS:-runs/sample/tags.csv}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
declare -A seconds=([tests]=90 [sanitizer]=120 [kernels]=240 [networks]=400 [folders]=180 [training]=180)  # at most
failed=()

bench() {
    "$PYTHON" -m sccam.cli bench "$@" --device cuda
}

part() {
    case $1 in
    tests) "$PYTHON" -m pytest -q -p no:cacheprovider tests/gpu -k "not sanitizer" ;;
    sanitizer) "$PYTHON" -m pytest -q -p no:cacheprovider tests/gpu -k sanitizer ;;
    kernels) "$PYTHON" benchmarks/gpu_kernels.py >benchmarks/results/gpu_kernels.json.new &&
        mv benchmarks/results/gpu_kernels.json.new benchmarks/results/gpu_kernels.json &&
        bench walk crf merge labels ;;
    networks) bench networks ;;
    folders) [[ -d $RUN ]] && bench pseudo_labels folder --run "$RUN" --images "$IMAGES" --tags "$TAGS" ;;
    training) bench training ;;
    esac
}

"$PYTHON" -c "import cupy, torch; assert torch.cuda.is_available(), 'torch finds no GPU'" || exit 4

# The CPU's kernels are what the GPU's are compared with; without a compiler slower ones take their place.
"$PYTHON" -c "from setuptools import setup; setup()" -q build_ext --inplace >/dev/null 2>&1 ||
    echo "no compiled CPU kernels: rows named native are missing"

[[ $# -gt 0 ]] || set -- tests sanitizer kernels networks folders training
export -f part bench
export PYTHON RUN IMAGES TAGS
for name in "$@"; do
    [[ -n ${seconds[$name]:-} ]] || { echo "no part '$name': choose from ${!seconds[*]}" >&2 && exit 2; }
    echo "== $name"
    timeout "${seconds[$name]}" bash -c "part $name" || failed+=("$name (exit $?)")
done
if [[ ${#failed[@]} -gt 0 ]]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
