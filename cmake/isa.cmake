# The one table of instruction sets: name, processor, compiler flags. Each row becomes one OBJECT
# library, compiled from cpp/kernels/isa/<name>.cpp and, where it exists, <name>_f64.cpp (the same
# for float64), with its own flags and nothing else's.
#
# A row is compiled where the processor matches and the compiler takes the flags; the dispatcher
# learns of it through CPUATTN_HAS_<name> and checks the CPU at run time.

include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)

set(CPUATTN_ISAS "" CACHE STRING "Instruction sets to compile (empty: all that fit)")
set(CPUATTN_KERNEL_OPTIONS "" CACHE STRING "More compiler flags for the kernels alone")

# The processor is what the compiler says: CMake's name is the machine's, also under -m32 or -arch.
foreach(macro x86_64 AARCH64EL wasm)
  check_cxx_source_compiles("#ifndef __${macro}__\n#error\n#endif\nint main() { return 0; }"
    CPUATTN_TARGET_${macro})
endforeach()

function(cpuattn_add_isa name processor)
  if(CPUATTN_ISAS AND NOT name STREQUAL "scalar" AND NOT name IN_LIST CPUATTN_ISAS)
    return()
  endif()
  if(NOT processor STREQUAL "any" AND NOT CPUATTN_TARGET_${processor})
    return()
  endif()
  if(name MATCHES "bf16$" AND NOT CPUATTN_DTYPE_bfloat16)
    return()
  endif()
  set(flags ${ARGN})
  if(flags)
    string(REPLACE ";" " " CMAKE_REQUIRED_FLAGS "${flags}")
    check_cxx_source_compiles("int main() { return 0; }" CPUATTN_COMPILES_${name})
    if(NOT CPUATTN_COMPILES_${name})
      message(STATUS "cpuattn: ${name} not compiled: the compiler does not take ${flags}")
      return()
    endif()
  endif()
  set(sources cpp/kernels/isa/${name}.cpp)
  if(CPUATTN_DTYPE_float64 AND EXISTS "${PROJECT_SOURCE_DIR}/cpp/kernels/isa/${name}_f64.cpp")
    list(APPEND sources cpp/kernels/isa/${name}_f64.cpp)
  endif()
  add_library(cpuattn_isa_${name} OBJECT ${sources})
  target_include_directories(cpuattn_isa_${name} PRIVATE cpp)
  target_compile_options(cpuattn_isa_${name} PRIVATE ${flags} ${CPUATTN_KERNEL_FLAGS})
  target_compile_definitions(cpuattn_isa_${name} PRIVATE ${CPUATTN_DTYPE_DEFINITIONS})
  target_link_libraries(cpuattn_isa_${name} PRIVATE cpuattn_warnings)
  set_target_properties(cpuattn_isa_${name} PROPERTIES
    POSITION_INDEPENDENT_CODE ON
    INTERPROCEDURAL_OPTIMIZATION OFF
    CXX_VISIBILITY_PRESET hidden)
  target_sources(cpuattn_core PRIVATE $<TARGET_OBJECTS:cpuattn_isa_${name}>)
  target_compile_definitions(cpuattn_core PRIVATE CPUATTN_HAS_${name})
  set(CPUATTN_COMPILED_ISAS ${CPUATTN_COMPILED_ISAS} ${name} PARENT_SCOPE)
  set(CPUATTN_FLAGS_${name} ${flags} ${CPUATTN_KERNEL_FLAGS} PARENT_SCOPE)  # for cpp/tests
endfunction()

# No -ffast-math, ever: -inf and NaN carry meaning. Contraction is off so that scalar code rounds
# the same way under every ISA; vector code says fma where it means it.
set(CPUATTN_KERNEL_FLAGS $<$<NOT:$<CONFIG:Debug>>:-O3> -fno-exceptions -fno-rtti
    -fno-threadsafe-statics -ffp-contract=off
    -fno-math-errno -fno-stack-protector)
if(CMAKE_CXX_COMPILER_FRONTEND_VARIANT STREQUAL "MSVC")  # clang-cl ignores those with a warning
  set(CPUATTN_KERNEL_FLAGS $<$<NOT:$<CONFIG:Debug>>:/clang:-O3> /EHs-c- /GR- /Zc:threadSafeInit- /clang:-ffp-contract=off
      /clang:-fno-math-errno /GS-)
  set(clang_cl /clang:)
endif()
list(APPEND CPUATTN_KERNEL_FLAGS ${CPUATTN_KERNEL_OPTIONS})
set(avx2_flags -mavx2 -mfma -mf16c -mbmi2)
set(avx512_flags ${avx2_flags} -mavx512f -mavx512bw -mavx512dq -mavx512vl
    ${clang_cl}-mprefer-vector-width=512)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC's own AVX-512 headers warn about their "undefined" operands (GCC bug 105593).
  list(APPEND avx512_flags -Wno-uninitialized -Wno-maybe-uninitialized)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # Scheduled before registers are given out, the product loops need more than the 32 there are.
  set(neon_flags -fno-schedule-insns)
endif()
if(NOT CPUATTN_NEON_BF16_FLAGS)  # a toolchain file may know others
  set(CPUATTN_NEON_BF16_FLAGS -march=armv8.2-a+bf16)
endif()

set(CPUATTN_COMPILED_ISAS "")
cpuattn_add_isa(amx_bf16 x86_64 ${avx512_flags} -mavx512bf16 -mamx-tile -mamx-bf16)
cpuattn_add_isa(avx512_bf16 x86_64 ${avx512_flags} -mavx512bf16)
cpuattn_add_isa(avx512 x86_64 ${avx512_flags})
cpuattn_add_isa(avx2 x86_64 ${avx2_flags})
cpuattn_add_isa(neon_bf16 AARCH64EL ${neon_flags} ${CPUATTN_NEON_BF16_FLAGS})
cpuattn_add_isa(neon AARCH64EL ${neon_flags})
cpuattn_add_isa(simd128 wasm -msimd128) # no module can ask: its engine must have it
cpuattn_add_isa(scalar any)
message(STATUS "cpuattn: instruction sets: ${CPUATTN_COMPILED_ISAS}")
