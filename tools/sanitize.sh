#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs C++, C and Python tests with GCC's sanitizers in the library: address (with undefined
# behavior and, in the C++ tests, leaks) or thread.
# Usage: tools/sanitize.sh address|thread [--quick]; CPUATTN_SANITIZE_DIR is the cache
# (build/sanitize).
#
# Needs the test extra and cmake, ninja, nanobind in the current Python environment.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-}
case $kind in
  address) flags="-fsanitize=address,undefined -fno-sanitize-recover=all" runtime=libasan.so ;;
  thread) flags="-fsanitize=thread" runtime=libtsan.so ;;
  *) echo "usage: tools/sanitize.sh address|thread [--quick]" >&2 && exit 2 ;;
esac
build=(-DCPUATTN_ISAS="avx2;avx512;neon")
targets=(attention_test combine_test dispatch_test element_test kernel_test problem_test
  schedule_test capi_static_test capi_failures_test capi_fuzz)
cxx_tests="(attention|combine|dispatch|element|problem|schedule)$|capi|kernel"
python_tests=(tests/test_limits.py tests/test_errors.py tests/test_strides.py tests/test_process.py)
export CPUATTN_TEST_SAMPLE=5 # one in so many problems of the C++ tests
if [[ ${2:-} == --quick ]]; then
  # Instrumented kernels take minutes to compile: the portable ones, of float32 only.
  build=(-DCPUATTN_ISAS=scalar -DCPUATTN_DTYPES=float32)
  targets=(capi_static_test capi_failures_test capi_fuzz)
  cxx_tests="capi"
  python_tests=(tests/test_limits.py tests/test_process.py -k "limits or many and not 32")
  export CPUATTN_TEST_SAMPLE=20
fi
# Address spaces without room are not for sanitizers, which need a large one.
python_tests+=(--deselect tests/test_limits.py::test_limits_address_space_is_a_memory_error_and_the_next_call_is_right)
if [[ $kind == thread ]]; then
  flags+=" -Wno-tsan"
else # keeps freed memory
  python_tests+=(--deselect tests/test_process.py::test_process_threads_end_without_leaving_their_scratch)
fi

mkdir -p "${CPUATTN_SANITIZE_DIR:=build/sanitize}/$kind"
cache=$(cd "$CPUATTN_SANITIZE_DIR/$kind" && pwd)
cmake -S . -B "$cache/build" -G Ninja -DCMAKE_BUILD_TYPE=Debug "${build[@]}" \
  -DCMAKE_CXX_FLAGS="$flags -fno-omit-frame-pointer" -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1" -DCMAKE_C_FLAGS="$flags" \
  -DCPUATTN_LIBRARIES=static -DCPUATTN_TESTS=ON -DCPUATTN_PYTHON=ON \
  -DPython_EXECUTABLE="$(command -v python)" -Dnanobind_DIR="$(python -m nanobind --cmake_dir)"
cmake --build "$cache/build" -j 2 --target _core "${targets[@]}"

export CPUATTN_TEST_PATIENCE=10
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS="suppressions=$PWD/tools/tsan.supp die_after_fork=0 allocator_may_return_null=1"
echo "== $kind: C++ and C tests"
# No memory is an answer, not an error of the caller's.
ASAN_OPTIONS=allocator_may_return_null=1 ctest --test-dir "$cache/build" --output-on-failure \
  -R "^($cxx_tests)"
echo "== $kind: Python tests"
rm -rf "$cache/package"
mkdir -p "$cache/package"
cp -r python/cpuattn "$cache/package/"
find "$cache/build" -maxdepth 1 -name '_core*.so' -exec cp {} "$cache/package/cpuattn/" \;
# CPython keeps memory until it ends: leaks are looked for in the C++ tests only.
ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=0 \
  LD_PRELOAD="$(g++ -print-file-name=$runtime) $(g++ -print-file-name=libstdc++.so)" \
  PYTHONPATH=$cache/package python -m pytest -q -p no:cacheprovider "${python_tests[@]}"
