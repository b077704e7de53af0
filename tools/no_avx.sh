#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs the C++ tests and the Python suite on emulated x86-64 CPUs: without AVX, and with AVX2 only.
# Usage: tools/no_avx.sh [pytest arguments]; CPUATTN_NO_AVX_DIR is the cache (build/no_avx).
#
# For Debian 12 on x86-64. qemu is installed by apt if missing (root); a venv without torch
# (which needs AVX) and the build go to the cache directory.
set -euo pipefail
cd "$(dirname "$0")/.."

# Emulated, the whole suite takes hours: a sample of what depends on the CPU.
pytest_arguments=("$@")
((!$#)) && pytest_arguments=(--numeric --sample=480)
mkdir -p "${CPUATTN_NO_AVX_DIR:=build/no_avx}"
cache=$(cd "$CPUATTN_NO_AVX_DIR" && pwd)
build=$cache/build
export PATH=$cache/venv/bin:$PATH

install_emulator() {
  if ! command -v qemu-x86_64-static >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends qemu-user-static
  fi
}

install_venv() {
  [[ -e $cache/venv.done ]] && return
  python3 -m venv "$cache/venv"
  pip install -q "cmake>=4.1" ninja "nanobind>=3.1" numpy ml_dtypes pytest pytest-xdist hypothesis
  # The tests start child processes by this script, else these would not be emulated.
  printf '#!/bin/sh\nexec qemu-x86_64-static "%s" "$@"\n' "$cache/venv/bin/python" >"$cache/python"
  chmod +x "$cache/python"
  touch "$cache/venv.done"
}

build_project() {
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCPUATTN_TESTS=ON \
    -DCPUATTN_LIBRARIES=static -DCPUATTN_PYTHON=ON -DPython_EXECUTABLE="$cache/venv/bin/python" \
    -Dnanobind_DIR="$(python -m nanobind --cmake_dir)" \
    -DCMAKE_TEST_LAUNCHER=qemu-x86_64-static
  cmake --build "$build"
  rm -rf "$cache/package"
  mkdir -p "$cache/package"
  cp -r python/cpuattn "$cache/package/"
  find "$build" -name '_core*.so' -exec cp {} "$cache/package/cpuattn/" \;
}

# run_tests CPU EXPECTED_ISAS [CTEST_OPTION...]
run_tests() {
  export QEMU_CPU=$1 CPUATTN_TEST_PYTHON=$cache/python PYTHONPATH=$cache/package:tools
  echo "== x86-64, $1: C++ tests"
  CPUATTN_TEST_SAMPLE=60 ctest --test-dir "$build" -j 2 --output-on-failure "${@:3}"
  echo "== x86-64, $1: Python tests"
  "$cache/python" -c "import cpuattn
usable = [row['name'] for row in cpuattn.info()['isas'] if row['usable']]
assert sorted(usable) == sorted('$2'.split()), usable"
  "$cache/python" -m pytest -q -p no:cacheprovider -p sample_tests \
    --dist load --tx "2*popen//python=$cache/python" "${pytest_arguments[@]}"
}

install_emulator
install_venv
build_project
# NumPy's OpenBLAS takes the emulated Nehalem for a Haswell.
OPENBLAS_CORETYPE=Nehalem run_tests Nehalem "scalar"
# qemu 7.2 reads the lanes that vmaskmovps masks out, so the tests that put arrays before a guard
# page fail in it (they run natively). It also warns about each feature of a Haswell that it lacks;
# these are no matter to us.
run_tests Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid "scalar avx2" \
  -E '^(bits|elements|kernel|units|vec)\.avx2(_f64)?$'
