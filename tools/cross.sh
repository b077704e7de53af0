#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Cross-compiles the C library by zig, runs C++ tests where an emulator can, and prints a table with
# the size of the full and of the smallest library.
# Usage: tools/cross.sh [--quick | TARGET...]; CPUATTN_CROSS_DIR is the cache (build/cross).
#
# For Debian 12 on x86-64. qemu is installed by apt if missing (root), zig and wasmtime by pip into
# the cache. zig compiles its C++ library once for each target.
set -euo pipefail
cd "$(dirname "$0")/.."

all_targets=(
  aarch64-macos x86_64-macos x86_64-windows-gnu aarch64-windows-gnu x86_64-linux-musl
  aarch64-linux-musl arm-linux-musleabihf riscv64-linux-musl s390x-linux-musl wasm32-wasi
)
case ${1:-} in
  "") targets=("${all_targets[@]}") ;;
  --quick) targets=(wasm32-wasi riscv64-linux-musl) ;;
  *) targets=("$@") ;;
esac
mkdir -p "${CPUATTN_CROSS_DIR:=build/cross}"
cache=$(cd "$CPUATTN_CROSS_DIR" && pwd)
export PATH=$cache/venv/bin:$PATH ZIG_GLOBAL_CACHE_DIR=$cache/zig CPUATTN_TEST_SAMPLE=30

install_tools() {
  if ! command -v qemu-riscv64-static >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends qemu-user-static
  fi
  [[ -e $cache/venv.done ]] && return
  python3 -m venv "$cache/venv"
  pip install -q "cmake>=4.1" ninja ziglang wasmtime
  touch "$cache/venv.done"
}

# configure TARGET DIRECTORY [CMAKE_OPTION...]
configure() {
  local launcher='' threads=pool libraries='static;shared'
  case $1 in
    x86_64-linux-*) ;;
    *-linux-*) launcher=qemu-${1%%-*}-static ;;
    wasm*) launcher="$cache/venv/bin/python;$PWD/tools/run_wasm.py" threads=none libraries=static ;;
  esac
  cmake -S . -B "$2" -G Ninja -DCMAKE_BUILD_TYPE=Release --toolchain "$PWD/cmake/zig-toolchain.cmake" \
    -DCPUATTN_ZIG_TARGET="$1" -DCPUATTN_THREADS="$threads" -DCPUATTN_LIBRARIES="$libraries" \
    -DCMAKE_CROSSCOMPILING_EMULATOR="$launcher" -DCMAKE_SHARED_LINKER_FLAGS=-s "${@:3}" >>"$log" 2>&1
}

# The linked library, or the archive where there are no shared libraries.
size_of() {
  local library
  library=$(find "$1" -maxdepth 1 -type f \
    \( -name 'libcpuattn.so*' -o -name 'libcpuattn*.dylib' -o -name '*cpuattn.dll' \) | head -n 1)
  if [[ -n $library ]]; then stat -c %s "$library"; else echo "$(stat -c %s "$1/libcpuattn.a") (archive)"; fi
}

# One line of the table: what was compiled and run, the sizes.
check() {
  local target=$1 build=$cache/$1 isa=scalar ran
  local libraries=(cpuattn_static cpuattn_shared)
  log=$cache/$target.log
  : >"$log"
  case $target in
    aarch64*) isa=neon ;;
    x86_64*) isa=avx2 ;;
    wasm*) isa=simd128 libraries=(cpuattn_static) ;;
  esac
  configure "$target" "$build"
  cmake --build "$build" -j2 --target "${libraries[@]}" capi_static_test "vec_test_$isa" kernel_test >>"$log" 2>&1
  case $target in
    *macos* | *windows*) ran="not run: no emulator" ;;
    *)
      ctest --test-dir "$build" --output-on-failure -R "^(capi.static|vec.$isa|kernel.(scalar|$isa))\$" >>"$log" 2>&1
      ran=$(grep 'tests passed' "$log" | tail -n 1)
      ;;
  esac
  configure "$target" "$build-small" -DCMAKE_BUILD_TYPE=MinSizeRel -DCPUATTN_ISAS="$isa" \
    -DCPUATTN_DTYPES=float32 -DCPUATTN_THREADS=none -DCPUATTN_TESTS=OFF
  cmake --build "$build-small" -j2 --target "${libraries[@]}" >>"$log" 2>&1
  echo "| $target | $ran | $(size_of "$build") | $(size_of "$build-small") |"
}

install_tools
echo "| target | tests | library, bytes | smallest: float32, one ISA, no threads |"
echo "|---|---|---|---|"
trap 'tail -n 30 "$log"' ERR
for target in "${targets[@]}"; do
  check "$target"
done
