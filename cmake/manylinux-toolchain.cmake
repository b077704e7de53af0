# SPDX-License-Identifier: MIT
# Compiles for manylinux_2_28 on a newer Linux, where wheels are made without its container.
#
# clang and the symbols of glibc 2.28 come from the package ziglang. Headers and library of C++ are
# those of the GCC at hand, so that its programs can link what the wheel carries; what the libstdc++
# of manylinux_2_28 (GCC 8) lacks is linked statically, as its container does it.
# Environment: ZIG is the program, ZIG_DIR a directory for what is made here (one for all builds, so
# that zig finds again what it has compiled), ZIG_ARCH x86_64 (the default) or aarch64.

set(zig_arch x86_64)
set(zig_cpu x86_64)
set(zig_gcc g++)
if("$ENV{ZIG_ARCH}" STREQUAL "aarch64")
  set(zig_arch aarch64)
  set(zig_cpu generic)
  set(zig_gcc aarch64-linux-gnu-g++)
  set(CMAKE_SYSTEM_NAME Linux)
  set(CMAKE_SYSTEM_PROCESSOR aarch64)
  set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static)
endif()

set(CPUATTN_NEON_BF16_FLAGS -mcpu=generic+v8_2a+bf16) # zig's -march is another thing

# Without -mcpu zig compiles for the CPU at hand, without -fno-sanitize it instruments code, and
# without -g0 it adds debug information.
set(CMAKE_CXX_COMPILER "$ENV{ZIG}" c++ -target ${zig_arch}-linux-gnu.2.28 -mcpu=${zig_cpu}
  -fno-sanitize=all -g0)

function(zig_run)
  execute_process(COMMAND ${ARGV} OUTPUT_VARIABLE output ERROR_VARIABLE error
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  set(zig_output "${output}" PARENT_SCOPE)
  set(zig_error "${error}" PARENT_SCOPE)
endfunction()

# The headers go before those of C, to which they refer by #include_next. They were configured for a
# newer glibc: the one symbol of that which they use inline is answered here.
set(zig_dir "$ENV{ZIG_DIR}/${zig_arch}")
zig_run(${zig_gcc} -xc++ -E -v /dev/null)
string(REGEX MATCHALL "\n /[^\n]*/c\\+\\+/[^\n]*" zig_directories "${zig_error}")
list(TRANSFORM zig_directories STRIP)
list(TRANSFORM zig_directories PREPEND "-I")
set(zig_flags -nostdinc++ -I${zig_dir} ${zig_directories})
if(NOT EXISTS "${zig_dir}/libnonshared.a")
  file(WRITE "${zig_dir}/sys/single_threaded.h"
    "#pragma once\nconstexpr bool __libc_single_threaded = false;\n")
  file(WRITE "${zig_dir}/exports.map" "{ global: PyInit_*; local: *; };\n")
  zig_run(${zig_gcc} -print-file-name=libstdc++.a)
  zig_run(${CMAKE_COMMAND} -E chdir "${zig_dir}" "$ENV{ZIG}" ar x "${zig_output}" eh_ptr.o)
  zig_run(${CMAKE_CXX_COMPILER} ${zig_flags} -O2 -fPIC -c
    "${CMAKE_CURRENT_LIST_DIR}/manylinux_nonshared.cpp" -o "${zig_dir}/nonshared.o")
  zig_run("$ENV{ZIG}" ar rcs "${zig_dir}/libnonshared.a" "${zig_dir}/nonshared.o"
    "${zig_dir}/eh_ptr.o")
endif()
list(JOIN zig_flags " " CMAKE_CXX_FLAGS_INIT)

set(CMAKE_CXX_STANDARD_LIBRARIES_INIT "${zig_dir}/libnonshared.a")
foreach(zig_library libstdc++.so.6 libgcc_s.so.1)
  zig_run(${zig_gcc} -print-file-name=${zig_library})
  string(APPEND CMAKE_CXX_STANDARD_LIBRARIES_INIT " ${zig_output}")
endforeach()
foreach(zig_kind EXE MODULE SHARED)
  set(CMAKE_${zig_kind}_LINKER_FLAGS_INIT "-nostdlib++ -Wl,--allow-shlib-undefined")
endforeach()
string(APPEND CMAKE_MODULE_LINKER_FLAGS_INIT " -Wl,--version-script=${zig_dir}/exports.map")
set(CPUATTN_CXX_RUNTIME stdc++ m)

# The archiver of the host may not know the objects.
set(CMAKE_CXX_ARCHIVE_CREATE "$ENV{ZIG} ar qcs <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_APPEND "$ENV{ZIG} ar qs <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "")
