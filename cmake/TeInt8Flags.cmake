# Flags of te_int8's own targets; nothing here reaches a project that uses the library.
#
#   te_int8_set_flags(target)               warnings, visibility, precompiled header
#   te_int8_add_program(name source...)     a program in build/bin with the same
#   te_int8_batch(target)                   compiles some files of it at a time

if(PROJECT_IS_TOP_LEVEL AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(TE_INT8_CCACHE ccache)
  if(TE_INT8_CCACHE)
    # Without this, ccache passes over every file that uses a precompiled header.
    set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${TE_INT8_CCACHE})
    set(te_int8_ccache_options $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
  endif()
endif()

# One precompiled header serves the library, the programs and the tests, as reading torch/torch.h
# takes some 20 seconds a file. That works because all of them have exactly these flags; -fPIC stands
# here because CMake would give -fPIE to programs, and a compiler refuses the header then.
add_library(te_int8_flags INTERFACE)
target_compile_options(te_int8_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-fPIC;-fvisibility=hidden;-fvisibility-inlines-hidden;${te_int8_ccache_options}>
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${TE_INT8_WERROR}>>:-Werror>
  $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${TE_INT8_WERROR}>>:-Xptxas=--warn-on-spills,--warning-as-error>)

file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/te_int8_pch.cpp
  CONTENT "// Gives the precompiled header a target.\n")
add_library(te_int8_pch OBJECT ${CMAKE_CURRENT_BINARY_DIR}/te_int8_pch.cpp)
target_link_libraries(te_int8_pch PRIVATE te_int8_flags te_int8::torch)
target_precompile_headers(te_int8_pch PRIVATE <torch/torch.h> <torch/library.h>)

function(te_int8_set_flags target)
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:te_int8_flags>)
  target_precompile_headers(${target} REUSE_FROM te_int8_pch)
endfunction()

function(te_int8_add_program name)
  add_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE te_int8::te_int8)
  te_int8_set_flags(${name})
endfunction()

# The templates of torch.h alone take 13 s in every file, the precompiled header notwithstanding.
function(te_int8_batch target)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 5)
endfunction()
