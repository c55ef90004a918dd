# SPDX-License-Identifier: Apache-2.0
# What every target of the project shares: warnings, sanitizers, include root, and the helpers that declare
# libraries, programs, tests and fuzz targets.

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)

add_library(distfuse_flags INTERFACE)
target_include_directories(distfuse_flags INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
target_compile_options(distfuse_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wvla -Werror
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor -Woverloaded-virtual>
  -fno-omit-frame-pointer)
target_compile_definitions(distfuse_flags INTERFACE
  DISTFUSE_VERSION="${PROJECT_VERSION}" _FILE_OFFSET_BITS=64 $<$<COMPILE_LANGUAGE:CXX>:SPDLOG_FMT_EXTERNAL>)
target_link_libraries(distfuse_flags INTERFACE Threads::Threads)
if(DISTFUSE_SANITIZE)
  target_compile_options(distfuse_flags INTERFACE -fsanitize=${DISTFUSE_SANITIZE} -fno-sanitize-recover=undefined)
  target_link_options(distfuse_flags INTERFACE -fsanitize=${DISTFUSE_SANITIZE})
endif()
if(DISTFUSE_SANITIZE MATCHES thread)
  target_compile_options(distfuse_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-tsan>)
endif()
if(DISTFUSE_FUZZ)
  # Coverage for the fuzzer in every object; only fuzz targets link its main().
  target_compile_options(distfuse_flags INTERFACE -fsanitize=fuzzer-no-link)
  target_link_options(distfuse_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# distfuse_library(NAME SOURCES file... [LIBRARIES target...])
function(distfuse_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBRARIES" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC distfuse_flags ${ARG_LIBRARIES})
endfunction()

# distfuse_program(NAME SOURCES file... [LIBRARIES target...] [INSTALL bindir-or-sbindir])
function(distfuse_program name)
  cmake_parse_arguments(ARG "" "INSTALL" "SOURCES;LIBRARIES" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE distfuse_flags ${ARG_LIBRARIES})
  if(ARG_INSTALL)
    install(TARGETS ${name} RUNTIME DESTINATION ${ARG_INSTALL})
  endif()
endfunction()

# distfuse_unit_test(NAME SOURCES file... [LIBRARIES target...] [LABELS label...] [TIMEOUT seconds])
# One GoogleTest program, one ctest entry, label `unit` unless told.
function(distfuse_unit_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LIBRARIES;LABELS" ${ARGN})
  if(DISTFUSE_FUZZ)
    return()
  endif()
  find_package(GTest REQUIRED)
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE distfuse_flags ${ARG_LIBRARIES} GTest::gmock GTest::gtest_main)
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()

# distfuse_fuzz_target(NAME SOURCES file... [LIBRARIES target...])
# A libFuzzer program (only with DISTFUSE_FUZZ), run by `scripts/test -L fuzz`. Name: fuzz_WHAT.
function(distfuse_fuzz_target name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBRARIES" ${ARGN})
  if(NOT DISTFUSE_FUZZ)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE distfuse_flags ${ARG_LIBRARIES})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  set(seconds 60)
  if(DEFINED ENV{DISTFUSE_FUZZ_SECONDS})
    set(seconds $ENV{DISTFUSE_FUZZ_SECONDS})
  endif()
  add_test(NAME ${name} COMMAND ${name} -max_total_time=${seconds} -print_final_stats=1 -rss_limit_mb=4096)
  set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 600)
endfunction()
