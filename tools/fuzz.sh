#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Fuzzes the C interface by libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer, then
# keeps the smallest set of inputs with the same coverage as cpp/tests/corpus.
# Usage: tools/fuzz.sh [runs]; CPUATTN_FUZZ_DIR is the cache (build/fuzz).
#
# Needs Debian's clang and libclang-rt (installed where they are missing, as root), cmake and ninja.
set -euo pipefail
cd "$(dirname "$0")/.."

runs=${1:-100000}
mkdir -p "${CPUATTN_FUZZ_DIR:=build/fuzz}"
cache=$(cd "$CPUATTN_FUZZ_DIR" && pwd)
# Checks of memory by calls, and those of arithmetic not in the kernels: inline, they take clang minutes.
flags="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
  -mllvm -asan-instrumentation-with-call-threshold=0 -Wno-unneeded-internal-declaration"

if ! echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
  clang++ -x c++ -fsanitize=fuzzer - -o "$cache/probe" 2>/dev/null; then
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends clang libclang-rt-14-dev
fi
CC=clang CXX=clang++ cmake -S . -B "$cache/build" -G Ninja -DCMAKE_BUILD_TYPE=Debug \
  -DCMAKE_CXX_FLAGS="${flags//$'\n'/}" -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1" \
  -DCPUATTN_KERNEL_OPTIONS=-fno-sanitize=undefined -DCPUATTN_TESTS=ON -DCPUATTN_FUZZER=ON \
  -DCPUATTN_ISAS="avx2;neon" -DCPUATTN_LIBRARIES=static
cmake --build "$cache/build" --target capi_fuzz
mkdir -p "$cache/corpus" cpp/tests/corpus
echo "== $runs runs"
"$cache/build/cpp/tests/capi_fuzz" -runs="$runs" -max_len=512 -print_final_stats=1 \
  -artifact_prefix="$cache/" "$cache/corpus" cpp/tests/corpus
echo "== the smallest corpus"
mkdir -p "$cache/merged"
find "$cache/merged" -type f -delete
"$cache/build/cpp/tests/capi_fuzz" -merge=1 -use_counters=0 -max_len=512 "$cache/merged" cpp/tests/corpus \
  "$cache/corpus"
find cpp/tests/corpus -type f -delete
find "$cache/merged" -type f -exec cp {} cpp/tests/corpus/ \;
echo "== $(find cpp/tests/corpus -type f | wc -l) inputs, $(du -sb cpp/tests/corpus | cut -f1) bytes"
