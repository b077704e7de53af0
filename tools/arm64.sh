#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Cross-compiles cpuattn for arm64 and runs the C++ tests and the Python suite under qemu-user.
# Usage: tools/arm64.sh [pytest arguments]; CPUATTN_ARM64_DIR is the cache (build/arm64).
#
# For Debian 12 on x86-64. What is missing of the cross compiler and qemu is installed by
# apt (root); all else goes to the cache directory: a root of unpacked arm64 packages with
# CPython and NumPy, a venv with cmake, ninja and nanobind, and the build.
set -euo pipefail
cd "$(dirname "$0")/.."

source tools/debian_root.sh
cpus=(max cortex-a72) # all extensions that qemu knows; plain ARMv8.0 without fp16 and dotprod
pytest_arguments=("$@")
((!$#)) && pytest_arguments=(--numeric --sample=480) # of what depends on the CPU

mkdir -p "${CPUATTN_ARM64_DIR:=build/arm64}"
cache=$(cd "$CPUATTN_ARM64_DIR" && pwd)
root=$cache/root
build=$cache/build
export PATH=$cache/venv/bin:$PATH

install_venv() {
  [[ -e $cache/venv.done ]] && return
  python3 -m venv "$cache/venv"
  pip install -q "cmake>=4.1" ninja "nanobind>=3.1"
  touch "$cache/venv.done"
}

# FindPython starts the arm64 Python by the emulator; when it looks for NumPy it takes this
# from another variable (CMake 4.4). Debian's pyconfig.h includes <aarch64-linux-gnu/...>.
build_project() {
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    --toolchain "$PWD/cmake/aarch64-toolchain.cmake" -DCPUATTN_ARM64_ROOT="$root" \
    -DCPUATTN_TESTS=ON -DCPUATTN_PYTHON=ON -DCPUATTN_LIBRARIES=static \
    -DPython_EXECUTABLE="$root/usr/bin/python3.11" \
    -DPython_INTERPRETER_LAUNCHER="qemu-aarch64-static;-L;$root" \
    -DCMAKE_CXX_FLAGS="-isystem $root/usr/include" \
    -Dnanobind_DIR="$(python -m nanobind --cmake_dir)"
  cmake --build "$build"
  python tools/check_symbols.py "$build" --prefix aarch64-linux-gnu-
  rm -rf "$cache/package"
  mkdir -p "$cache/package"
  cp -r python/cpuattn "$cache/package/"
  find "$build" -name '_core*.so' -exec cp {} "$cache/package/cpuattn/" \;
}

# The C library's examples, as apps of their own, on the plainest CPU.
run_examples() {
  for component in c_runtime c_development; do
    cmake --install "$build" --prefix "$cache/prefix" --component "$component" >/dev/null
  done
  for name in embed_c embed_cpp; do
    cmake -S "examples/$name" -B "$cache/$name" -G Ninja -DCMAKE_BUILD_TYPE=Release \
      --toolchain "$PWD/cmake/aarch64-toolchain.cmake" -DCMAKE_PREFIX_PATH="$cache/prefix"
    cmake --build "$cache/$name"
    echo "== arm64, $name"
    QEMU_CPU=cortex-a72 qemu-aarch64-static -L "$root" "$cache/$name/$name" 64
  done
}

run_tests() {
  for QEMU_CPU in "${cpus[@]}"; do
    export QEMU_CPU
    echo "== arm64, $QEMU_CPU: C++ tests"
    CPUATTN_TEST_SAMPLE=60 ctest --test-dir "$build" -j 2 --output-on-failure
    echo "== arm64, $QEMU_CPU: Python tests"
    CPUATTN_TEST_PYTHON=$cache/python PYTHONNOUSERSITE=1 PYTHONPATH=$cache/package:tools \
      "$cache/python" -m pytest -q -p no:cacheprovider -p sample_tests \
      --dist load --tx "2*popen//python=$cache/python" "${pytest_arguments[@]}"
  done
}

install_arm64_compiler_and_emulator
install_venv
install_arm64_python "$cache"
build_project
run_examples
run_tests
