#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Tests the AMX kernels on a CPU with AVX-512 that need not have AMX: the tile instructions of the
# shipped machine code are trapped and emulated (cpp/tests/amx_emulator.h).
# Usage: tools/amx.sh [pytest arguments]; CPUATTN_AMX_DIR is the cache (build/amx).
#
# Needs the test extra and cmake, ninja, nanobind in the current Python environment.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! grep -q avx512_bf16 /proc/cpuinfo; then
  echo "skipped: the vector side of the AMX kernels needs AVX512_BF16, which this CPU lacks"
  exit 0
fi

# Emulated, a tile instruction takes microseconds: a sample of the numeric tests.
pytest_arguments=("$@")
((!$#)) && pytest_arguments=(--numeric --sample=10)
mkdir -p "${CPUATTN_AMX_DIR:=build/amx}"
cache=$(cd "$CPUATTN_AMX_DIR" && pwd)
build=$cache/build

cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCPUATTN_TESTS=ON \
  -DCPUATTN_EMULATE_AMX=ON -DCPUATTN_PYTHON=ON -DPython_EXECUTABLE="$(command -v python)" \
  -Dnanobind_DIR="$(python -m nanobind --cmake_dir)"
cmake --build "$build"
rm -rf "$cache/package"
mkdir -p "$cache/package"
cp -r python/cpuattn "$cache/package/"
find "$build" -name '_core*.so' -exec cp {} "$cache/package/cpuattn/" \;

echo "== AMX: C++ tests"
CPUATTN_TEST_SAMPLE=10 ctest --test-dir "$build" -j 2 --output-on-failure -R amx
echo "== AMX: Python tests"
export PYTHONPATH=$cache/package:tools
python -c "import cpuattn
assert cpuattn.available_isas()[0] == 'amx_bf16', cpuattn.info()['isas']"
# pytest's faulthandler would take the signal by which instructions are trapped.
python -m pytest -q -p no:faulthandler -p no:cacheprovider -p sample_tests -k amx_bf16 \
  "${pytest_arguments[@]}"
