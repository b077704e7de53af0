# Element types beside float32, which every build has. Leaving some out makes the library smaller;
# arrays of theirs are then refused.

set(CPUATTN_DTYPES float16 bfloat16 float64 CACHE STRING
    "Element types beside float32: float16, bfloat16, float64")
foreach(dtype IN LISTS CPUATTN_DTYPES)
  if(NOT dtype MATCHES "^(float16|bfloat16|float32|float64)$")
    message(FATAL_ERROR "CPUATTN_DTYPES: must name float16, bfloat16 or float64; got ${dtype}")
  endif()
endforeach()
foreach(dtype float16 bfloat16 float64)
  if(dtype IN_LIST CPUATTN_DTYPES)
    set(CPUATTN_DTYPE_${dtype} 1)
  else()
    set(CPUATTN_DTYPE_${dtype} 0)
  endif()
  list(APPEND CPUATTN_DTYPE_DEFINITIONS CPUATTN_DTYPE_${dtype}=${CPUATTN_DTYPE_${dtype}})
endforeach()
target_compile_definitions(cpuattn_core PUBLIC ${CPUATTN_DTYPE_DEFINITIONS})
