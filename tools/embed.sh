#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Embeds cpuattn the way an app does: installs the C library of a build, builds the examples against
# it (static, shared, pkg-config) and runs them; counts the allocations of the decode loop; builds the
# smallest library. Usage: tools/embed.sh BUILD_DIR
set -euo pipefail
cd "$(dirname "$0")/.."

build=$(cd "$1" && pwd)
work=$build/embed
prefix=$work/prefix
rm -rf "$work"
trap 'tail -n 20 "$work"/*.log' ERR
mkdir -p "$work"
for component in c_runtime c_development; do
  cmake --install "$build" --prefix "$prefix" --component $component >>"$work/install.log"
done
libdir=$(dirname "$(find "$prefix" -name libcpuattn.a)")

# build_example NAME KIND BUILD_SHARED_LIBS
build_example() {
  cmake -S "examples/$1" -B "$work/$1-$2" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_PREFIX_PATH="$prefix" -DBUILD_SHARED_LIBS="$3" >"$work/$1-$2.log"
  cmake --build "$work/$1-$2" >>"$work/$1-$2.log"
}

for name in embed_c embed_cpp; do
  build_example "$name" static OFF
  build_example "$name" shared ON
  for kind in static shared; do
    echo "== $name, $kind"
    "$work/$name-$kind/$name"
  done
done

if command -v pkg-config >/dev/null; then
  echo "== embed_c by pkg-config"
  export PKG_CONFIG_PATH=$libdir/pkgconfig
  # shellcheck disable=SC2046
  cc -O2 examples/embed_c/main.c $(pkg-config --cflags --libs cpuattn) -lm -o "$work/embed_c"
  LD_LIBRARY_PATH=$libdir "$work/embed_c" 500
fi

echo "== allocations of the decode loop"
cc -O2 -shared -fPIC tools/count_allocations.c -o "$work/count.so"
for kind in static shared; do
  counts=()
  for tokens in 200 3000; do
    counts+=("$(LD_PRELOAD=$work/count.so "$work/embed_c-$kind/embed_c" "$tokens" 2>&1 >/dev/null)")
  done
  echo "$kind: ${counts[0]} for 200 tokens, ${counts[1]} for 3000"
  [[ ${counts[0]} == allocations:* && ${counts[0]} == "${counts[1]}" ]]
done

echo "== exported symbols"
if nm --dynamic --defined-only "$libdir/libcpuattn.so" | grep -v ' cpuattn_'; then
  echo "libcpuattn.so must export cpuattn_* only"
  exit 1
fi

echo "== the smallest library: float32, one instruction set, no threads"
case $(uname -m) in
  aarch64 | arm64) isa=neon ;;
  *) isa=avx2 ;;
esac
cmake -S . -B "$work/small" -G Ninja -DCMAKE_BUILD_TYPE=MinSizeRel -DCPUATTN_ISAS="$isa" \
  -DCPUATTN_DTYPES=float32 -DCPUATTN_THREADS=none -DCPUATTN_LIBRARIES="static;shared" >"$work/small.log"
cmake --build "$work/small" --target capi_static_test capi_shared_test capi_fuzz >>"$work/small.log"
ctest --test-dir "$work/small" -R '^capi\.(static|shared|fuzz|corpus)$' --output-on-failure | tail -3
for library in "$libdir/libcpuattn.so" "$work/small/libcpuattn.so"; do
  strip --strip-unneeded "$library" -o "$work/stripped.so"
  echo "$(stat -c %s "$work/stripped.so") bytes: ${library#"$build/"}"
done
