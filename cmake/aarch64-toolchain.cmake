# SPDX-License-Identifier: MIT
# Cross-compiles for arm64 Linux by Debian's g++-aarch64-linux-gnu; ctest runs the
# results by qemu-user. tools/arm64.sh uses it with a root that also holds a Python.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

# The default serves the C++ tests; it is where Debian's cross compiler keeps its libraries.
set(CPUATTN_ARM64_ROOT "/usr/aarch64-linux-gnu" CACHE PATH "Root with arm64 libraries")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES CPUATTN_ARM64_ROOT)

# The emulated CPU is left to the environment variable QEMU_CPU, so one build serves all.
find_program(CPUATTN_QEMU_AARCH64 NAMES qemu-aarch64-static qemu-aarch64 REQUIRED)
set(CMAKE_CROSSCOMPILING_EMULATOR "${CPUATTN_QEMU_AARCH64}" -L "${CPUATTN_ARM64_ROOT}")

# Headers and libraries are arm64's, programs the host's, CMake packages of either.
set(CMAKE_FIND_ROOT_PATH "${CPUATTN_ARM64_ROOT}" /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)
