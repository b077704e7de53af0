# SPDX-License-Identifier: MIT
# Sourced by tools/*.sh: packages of another architecture or release of Debian, unpacked into a
# directory, and an arm64 CPython with NumPy made of them. The host stays as it is.

# debian_apt DIRECTORY ARCHITECTURE SUITE ARGUMENT...: apt-get with a state of its own below
# DIRECTORY, from the mirror that the host uses.
debian_apt() {
  local state=$1/apt architecture=$2 suite=$3 mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep 'debian/$' | head -1)
  mkdir -p "$state/lists/partial" "$state/archives/partial"
  local source="[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
  printf 'deb %s\ndeb-src %s\n' "$source" "$source" >"$state/sources.list"
  apt-get -q -o APT::Architecture="$architecture" -o APT::Architectures="$architecture" \
    -o APT::Sandbox::User="$(id -un)" -o Dir::State="$state" -o Dir::Cache="$state" \
    -o Dir::State::status=/dev/null -o Dir::Etc::sourcelist="$state/sources.list" \
    -o Dir::Etc::sourceparts=/dev/null "${@:4}"
}

# unpack_root DIRECTORY ARCHITECTURE SUITE PACKAGE...: into DIRECTORY/root, once
unpack_root() {
  [[ -e $1/root.done ]] && return
  rm -rf "$1/root" "$1/debs"
  mkdir -p "$1/root" "$1/debs"
  debian_apt "$1" "$2" "$3" update
  (cd "$1/debs" && debian_apt "$1" "$2" "$3" download "${@:4}")
  local package
  for package in "$1"/debs/*.deb; do
    dpkg -x "$package" "$1/root"
  done
  touch "$1/root.done"
}

# python_packages VERSION: the packages of Debian's CPython and the libraries it and wheels need
python_packages() {
  local python=python$1
  echo "$python-minimal" "lib$python-minimal" "lib$python-stdlib" "lib$python" "lib$python-dev" \
    libc6 libexpat1 zlib1g libgcc-s1 libstdc++6 libgomp1 libbz2-1.0 liblzma5
}

install_arm64_compiler_and_emulator() {
  if ! command -v aarch64-linux-gnu-g++ >/dev/null || ! command -v qemu-aarch64-static >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
      g++-aarch64-linux-gnu qemu-user-static
  fi
}

# install_arm64_python DIRECTORY PACKAGE...: DIRECTORY/python starts Debian 12's CPython 3.11 by the
# emulator, with NumPy and what the tests need.
install_arm64_python() {
  local cache=$1 root=$1/root
  unpack_root "$cache" arm64 bookworm $(python_packages 3.11) libssl3 libffi8
  [[ -e $cache/wheels.done ]] && return
  local platforms=()
  for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17; do
    platforms+=(--platform "${tag}_aarch64")
  done
  mkdir -p "$root/usr/lib/python3/dist-packages"
  pip install -q --upgrade --target "$root/usr/lib/python3/dist-packages" --only-binary=:all: \
    "${platforms[@]}" --implementation cp --python-version 3.11 \
    numpy ml_dtypes pytest pytest-xdist hypothesis
  # The tests start child processes by this script: the kernel knows no arm64 file.
  printf '#!/bin/sh\nexec qemu-aarch64-static -L "%s" "%s" "$@"\n' \
    "$root" "$root/usr/bin/python3.11" >"$cache/python"
  chmod +x "$cache/python"
  touch "$cache/wheels.done"
}
