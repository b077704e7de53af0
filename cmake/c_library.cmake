# The C library, static and shared, with what finds it: cpuattnConfig.cmake and cpuattn.pc.
#
#   find_package(cpuattn)  ->  cpuattn::cpuattn (either, by BUILD_SHARED_LIBS), cpuattn::static,
#                              cpuattn::shared

include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(cpuattn_objects $<TARGET_OBJECTS:cpuattn_core>)
foreach(isa IN LISTS CPUATTN_COMPILED_ISAS)
  list(APPEND cpuattn_objects $<TARGET_OBJECTS:cpuattn_isa_${isa}>)
endforeach()

foreach(kind IN LISTS CPUATTN_LIBRARIES)
  string(TOUPPER ${kind} type)
  add_library(cpuattn_${kind} ${type} cpp/capi/capi.cpp ${cpuattn_objects})
  add_library(cpuattn::${kind} ALIAS cpuattn_${kind})
  target_include_directories(cpuattn_${kind}
    PRIVATE cpp
    PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/cpp/include>
           $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_compile_definitions(cpuattn_${kind} PRIVATE ${CPUATTN_DTYPE_DEFINITIONS})
  target_link_libraries(cpuattn_${kind} PRIVATE $<BUILD_INTERFACE:cpuattn_warnings>)
  if(CPUATTN_THREADS STREQUAL "pool")
    target_link_libraries(cpuattn_${kind} PRIVATE Threads::Threads)
  elseif(CPUATTN_THREADS STREQUAL "openmp")
    target_link_libraries(cpuattn_${kind} PRIVATE OpenMP::OpenMP_CXX)
  endif()
  set_target_properties(cpuattn_${kind} PROPERTIES
    EXPORT_NAME ${kind}
    OUTPUT_NAME cpuattn
    POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR})
endforeach()
list(TRANSFORM CPUATTN_LIBRARIES PREPEND cpuattn_ OUTPUT_VARIABLE cpuattn_libraries)
if(TARGET cpuattn_shared)
  target_compile_definitions(cpuattn_shared
    PUBLIC CPUATTN_SHARED PRIVATE CPUATTN_BUILDS_LIBRARY)
  if(UNIX AND NOT APPLE)  # nothing of the C++ runtime's inline code
    target_link_options(cpuattn_shared
      PRIVATE LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/exports.map)
  endif()
endif()
if(WIN32 AND TARGET cpuattn_static)
  set_target_properties(cpuattn_static PROPERTIES OUTPUT_NAME cpuattn_static)
endif()
if(TARGET cpuattn_shared AND (BUILD_SHARED_LIBS OR NOT TARGET cpuattn_static))
  add_library(cpuattn::cpuattn ALIAS cpuattn_shared)
else()
  add_library(cpuattn::cpuattn ALIAS cpuattn_static)
endif()

# A C program that links the static library needs the runtime of C++ beside it. A toolchain file may
# name it where CMake cannot see it.
if(NOT DEFINED CPUATTN_CXX_RUNTIME)
  set(CPUATTN_CXX_RUNTIME ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})
  list(REMOVE_ITEM CPUATTN_CXX_RUNTIME ${CMAKE_C_IMPLICIT_LINK_LIBRARIES} gcc gcc_s c)
  list(REMOVE_DUPLICATES CPUATTN_CXX_RUNTIME)
endif()
list(TRANSFORM CPUATTN_CXX_RUNTIME PREPEND "-l" OUTPUT_VARIABLE CPUATTN_PC_RUNTIME)
list(JOIN CPUATTN_PC_RUNTIME " " CPUATTN_PC_RUNTIME)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/cpuattn)
configure_package_config_file(cmake/cpuattnConfig.cmake.in cpuattnConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(cpuattnConfigVersion.cmake COMPATIBILITY SameMajorVersion)
configure_file(cmake/cpuattn.pc.in cpuattn.pc @ONLY)

install(TARGETS ${cpuattn_libraries} EXPORT cpuattn_targets
  RUNTIME COMPONENT c_runtime
  LIBRARY COMPONENT c_runtime NAMELINK_COMPONENT c_development
  ARCHIVE COMPONENT c_development)
install(EXPORT cpuattn_targets NAMESPACE cpuattn:: DESTINATION ${package_dir}
  COMPONENT c_development)
install(DIRECTORY cpp/include/cpuattn DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  COMPONENT c_development)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/cpuattnConfig.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/cpuattnConfigVersion.cmake
  DESTINATION ${package_dir} COMPONENT c_development)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/cpuattn.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT c_development)
