# SPDX-License-Identifier: MIT
# Cross-compiles by zig, a Clang with the C and C++ libraries of many systems (pip install ziglang).
# -DCPUATTN_ZIG_TARGET=<one of "zig targets">, as riscv64-linux-musl; tools/cross.sh uses it.

set(CPUATTN_ZIG_TARGET "" CACHE STRING "What zig calls the target")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES CPUATTN_ZIG_TARGET)
if(NOT CPUATTN_ZIG_TARGET MATCHES "^([a-z0-9_]+)-([a-z]+)")
  message(FATAL_ERROR "CPUATTN_ZIG_TARGET: must be as riscv64-linux-musl; got ${CPUATTN_ZIG_TARGET}")
endif()
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
set(zig_systems linux Linux macos Darwin windows Windows wasi WASI)
list(FIND zig_systems ${CMAKE_MATCH_2} at)
math(EXPR at "${at} + 1")
list(GET zig_systems ${at} CMAKE_SYSTEM_NAME)

find_program(CPUATTN_PYTHON_WITH_ZIG NAMES python3 python REQUIRED)
execute_process(
  COMMAND ${CPUATTN_PYTHON_WITH_ZIG} -c "import ziglang; print(ziglang.__path__[0])"
  OUTPUT_VARIABLE zig_dir OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)

# CMake wants each tool to be one file.
function(write_tool variable command)
  set(tool "${CMAKE_BINARY_DIR}/zig/${variable}")
  if(NOT EXISTS "${tool}")
    file(CONFIGURE OUTPUT "${tool}" CONTENT "#!/bin/sh\nexec '${zig_dir}/zig' ${command} \"$@\"\n" @ONLY)
    file(CHMOD "${tool}" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  endif()
  set(${variable} "${tool}" PARENT_SCOPE)
endfunction()
write_tool(CMAKE_C_COMPILER "cc -target ${CPUATTN_ZIG_TARGET}")
write_tool(CMAKE_CXX_COMPILER "c++ -target ${CPUATTN_ZIG_TARGET}")
write_tool(CMAKE_AR ar)
write_tool(CMAKE_RANLIB ranlib)
write_tool(CMAKE_RC_COMPILER rc)
set(CMAKE_INSTALL_NAME_TOOL "${CMAKE_COMMAND}") # there is none; nothing is linked by path
set(CPUATTN_NEON_BF16_FLAGS -mcpu=generic+v8_2a+bf16) # zig's -march is another thing

if(CMAKE_SYSTEM_NAME STREQUAL "WASI")
  set(CMAKE_CXX_FLAGS_INIT -fno-exceptions) # the C++ library for it cannot throw
endif()

set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
