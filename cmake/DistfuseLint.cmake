# SPDX-License-Identifier: Apache-2.0
# Target `lint`: clang-format and clang-tidy over the tracked sources; fails on the first difference or finding.
# Target `format`: rewrites the sources.

find_program(CLANG_FORMAT NAMES clang-format-14 clang-format)
find_program(RUN_CLANG_TIDY NAMES run-clang-tidy-14 run-clang-tidy)
if(CLANG_FORMAT)
  add_custom_target(format COMMAND ${CMAKE_SOURCE_DIR}/scripts/lint --fix
    WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} USES_TERMINAL)
  add_custom_target(lint COMMAND ${CMAKE_SOURCE_DIR}/scripts/lint --build ${CMAKE_BINARY_DIR}
    WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} USES_TERMINAL)
endif()
