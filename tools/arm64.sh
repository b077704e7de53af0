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

python=python3.11 # of Debian 12
debian_packages=(
  "$python-minimal" "lib$python-minimal" "lib$python-stdlib" "lib$python" "lib$python-dev"
  libc6 libexpat1 zlib1g libgcc-s1 libstdc++6 libgomp1 libssl3 libffi8 libbz2-1.0 liblzma5
)
python_packages=(numpy ml_dtypes pytest pytest-xdist hypothesis)
cpus=(max cortex-a72) # all extensions that qemu knows; plain ARMv8.0 without fp16 and dotprod
# Emulated, the whole suite takes hours: a sample of the numeric tests. What does not depend on the
# CPU (error texts, processes, packaging, front ends) runs natively only.
pytest_arguments=("$@")
if ((!$#)); then
  pytest_arguments=(--sample=80)
  for name in 'compat_*' errors explain 'integrations_*' keras package process reference torch; do
    pytest_arguments+=("--ignore-glob=tests/test_$name.py")
  done
fi

mkdir -p "${CPUATTN_ARM64_DIR:=build/arm64}"
cache=$(cd "$CPUATTN_ARM64_DIR" && pwd)
root=$cache/root
site=$root/usr/lib/python3/dist-packages
build=$cache/build
export PATH=$cache/venv/bin:$PATH

install_compiler_and_emulator() {
  if ! command -v aarch64-linux-gnu-g++ >/dev/null || ! command -v qemu-aarch64-static >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
      g++-aarch64-linux-gnu qemu-user-static
  fi
}

# A state of apt's own: the host's list of architectures and packages stays as it is.
arm64_apt() {
  apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
    -o APT::Sandbox::User="$(id -un)" -o Dir::State="$cache/apt" -o Dir::Cache="$cache/apt" \
    -o Dir::State::status=/dev/null "$@"
}

unpack_root() {
  [[ -e $cache/root.done ]] && return
  rm -rf "$root" "$cache/debs"
  mkdir -p "$root" "$cache/debs" "$cache/apt/lists/partial" "$cache/apt/archives/partial"
  arm64_apt update
  (cd "$cache/debs" && arm64_apt download "${debian_packages[@]}")
  for package in "$cache"/debs/*.deb; do
    dpkg -x "$package" "$root"
  done
  touch "$cache/root.done"
}

install_venv() {
  [[ -e $cache/venv.done ]] && return
  python3 -m venv "$cache/venv"
  pip install -q "cmake>=4.1" ninja "nanobind>=3.1"
  touch "$cache/venv.done"
}

install_wheels() {
  [[ -e $cache/wheels.done ]] && return
  local platforms=()
  for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17; do
    platforms+=(--platform "${tag}_aarch64")
  done
  mkdir -p "$site"
  pip install -q --upgrade --target "$site" --only-binary=:all: \
    "${platforms[@]}" --implementation cp --python-version "${python#python}" \
    "${python_packages[@]}"
  # The tests start child processes by this script: the kernel knows no arm64 file.
  printf '#!/bin/sh\nexec qemu-aarch64-static -L "%s" "%s" "$@"\n' \
    "$root" "$root/usr/bin/$python" >"$cache/python"
  chmod +x "$cache/python"
  touch "$cache/wheels.done"
}

# FindPython starts the arm64 Python by the emulator; when it looks for NumPy it takes this
# from another variable (CMake 4.4). Debian's pyconfig.h includes <aarch64-linux-gnu/...>.
build_project() {
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    --toolchain "$PWD/cmake/aarch64-toolchain.cmake" -DCPUATTN_ARM64_ROOT="$root" \
    -DCPUATTN_TESTS=ON -DCPUATTN_PYTHON=ON -DCPUATTN_LIBRARIES=static \
    -DPython_EXECUTABLE="$root/usr/bin/$python" \
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
    CPUATTN_TEST_SAMPLE=30 ctest --test-dir "$build" -j 2 --output-on-failure
    echo "== arm64, $QEMU_CPU: Python tests"
    CPUATTN_TEST_PYTHON=$cache/python PYTHONNOUSERSITE=1 PYTHONPATH=$cache/package:tools \
      "$cache/python" -m pytest -q -p no:cacheprovider -p sample_tests \
      --dist load --tx "2*popen//python=$cache/python" "${pytest_arguments[@]}"
  done
}

install_compiler_and_emulator
unpack_root
install_venv
install_wheels
build_project
run_examples
run_tests
