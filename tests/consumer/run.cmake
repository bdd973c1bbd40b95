# Configures, builds and runs one consumer:
#   cmake -DSOURCE=... -DBINARY=... -DCOMPILER=... [-DOPTIONS=-Da=b;-Dc=d] [-DCONFIGURE_ONLY=ON] -P run.cmake
# The build folder is kept, so that a second run compiles only what has changed.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code)
  if(code)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "expected exit code 0, got ${code}, from: ${command}")
  endif()
endfunction()

run(${CMAKE_COMMAND} -S ${SOURCE} -B ${BINARY} -G Ninja
  -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O0 ${OPTIONS})
if(NOT CONFIGURE_ONLY)
  run(${CMAKE_COMMAND} --build ${BINARY})
  run(${BINARY}/consumer)
  if(EXISTS ${BINARY}/operators_only)
    run(${BINARY}/operators_only)
  endif()
endif()
