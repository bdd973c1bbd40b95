# Compiles kernels/, which the library and the kernels' own tests are linked with, into the object libraries that
# te_int8_kernel_libraries lists. Those that CUTLASS makes by instances, as each takes half a minute:
# kernels/gemm_sm90.cu, gemm_sm80.cu and convolution_sm90.cu once per tile and output type. Without CUTLASS, or without
# an architecture that they are for, the back end "cutlass" is left out.
set(TE_INT8_CUTLASS "" CACHE PATH
  "CUTLASS 4: the folder that holds include/cutlass; by default what the set-up has fetched")
set(TE_INT8_TILES ALL CACHE STRING "Tiles of the CUTLASS kernels: ALL, or ONE of each for a quick build")
set_property(CACHE TE_INT8_TILES PROPERTY STRINGS ALL ONE)
if(NOT TE_INT8_TILES MATCHES "^(ALL|ONE)$")
  message(FATAL_ERROR "te_int8: expected TE_INT8_TILES to be ALL or ONE, got '${TE_INT8_TILES}'")
endif()
set(te_int8_cutlass ${PROJECT_SOURCE_DIR}/.deps/cutlass/cutlass_library/source)
if(TE_INT8_CUTLASS)
  set(te_int8_cutlass ${TE_INT8_CUTLASS})
  if(NOT EXISTS ${te_int8_cutlass}/include/cutlass/cutlass.h)
    message(FATAL_ERROR "te_int8: expected TE_INT8_CUTLASS to be a folder with include/cutlass/cutlass.h, got "
      "'${TE_INT8_CUTLASS}'.\n  Remedy: name CUTLASS 4, or leave it empty; scripts/quickstart.sh fetches it.")
  endif()
endif()

# te_int8_add_kernels(name source...): an object library of them.
function(te_int8_add_kernels name)
  add_library(${name} OBJECT ${ARGN})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_RUNTIME_LIBRARY Shared)
  target_compile_features(${name} PRIVATE cxx_std_20)
  target_link_libraries(${name} PRIVATE te_int8_cuda te_int8_flags)
  target_sources(te_int8 PRIVATE $<TARGET_OBJECTS:${name}>)
  set(te_int8_kernel_libraries ${te_int8_kernel_libraries} ${name} PARENT_SCOPE)
endfunction()

te_int8_add_kernels(te_int8_kernels ${te_int8_kernel_sources})

# te_int8_add_gemms(source architectures outs fields tile...): an instance for each output type and tile, which is a list
# of the values of `fields` in one word. Where TE_INT8_TILES is ONE, of the first tile only.
function(te_int8_add_gemms source architectures outs fields)
  set(tiles ${ARGN})
  if(TE_INT8_TILES STREQUAL "ONE")
    list(GET tiles 0 tiles)
  endif()
  foreach(out IN LISTS outs)
    foreach(tile IN LISTS tiles)
      set(target te_int8_${source}_${out}_${tile})
      string(REPLACE "," "_" target ${target})
      string(REPLACE "," ";" values ${tile})
      te_int8_add_kernels(${target} kernels/${source}.cu)
      set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${architectures}")
      target_include_directories(${target} SYSTEM PRIVATE
        ${te_int8_cutlass}/include ${te_int8_cutlass}/tools/util/include)
      # Without NDEBUG wgmma is serialised; the other one is for programmatic dependent launch (kernels/pdl.cuh).
      target_compile_definitions(${target} PRIVATE NDEBUG CUTLASS_ENABLE_GDC_FOR_SM90=1 TE_INT8_OUT=${out})
      foreach(field value IN ZIP_LISTS fields values)
        target_compile_definitions(${target} PRIVATE TE_INT8_${field}=${value})
      endforeach()
      target_compile_options(${target} PRIVATE --expt-relaxed-constexpr)
      if(TE_INT8_WERROR)
        set(launcher ${PROJECT_SOURCE_DIR}/cmake/fail_on_serialized_wgmma.sh ${CMAKE_CUDA_COMPILER_LAUNCHER})
        set_target_properties(${target} PROPERTIES CUDA_COMPILER_LAUNCHER "${launcher}")
      endif()
    endforeach()
  endforeach()
  set(te_int8_kernel_libraries ${te_int8_kernel_libraries} PARENT_SCOPE)
endfunction()

set(te_int8_old_architectures ${CMAKE_CUDA_ARCHITECTURES})
list(FILTER te_int8_old_architectures INCLUDE REGEX "^8[0-9]")
if(NOT EXISTS ${te_int8_cutlass}/include/cutlass/cutlass.h)
  message(STATUS "te_int8: without the back end cutlass, as TE_INT8_CUTLASS is empty and the set-up has fetched none")
else()
  target_compile_definitions(te_int8 PRIVATE TE_INT8_WITH_CUTLASS)
  set(te_int8_hopper ${CMAKE_CUDA_ARCHITECTURES})
  list(FILTER te_int8_hopper INCLUDE REGEX "^90a")
  if(NOT te_int8_hopper)
    message(STATUS "te_int8: without CUTLASS's kernels for Hopper, as CMAKE_CUDA_ARCHITECTURES names no 90a")
  endif()
  if(NOT te_int8_old_architectures)
    message(STATUS "te_int8: without CUTLASS's kernels for Ampere and Ada, as CMAKE_CUDA_ARCHITECTURES names no 80 to 89")
  endif()
  if(te_int8_hopper)
    # The first is quick everywhere. A float output leaves little shared memory to larger tiles.
    set(fields TILE_M TILE_N TILE_K CLUSTER_M CLUSTER_N COOPERATIVE SWAPPED ACCUMULATES)
    set(few_rows 64,16,256,1,1,0,1,0 64,32,256,1,1,0,1,0 64,64,256,1,1,0,1,0)
    te_int8_add_gemms(gemm_sm90 90a "bfloat16;half" "${fields}"
      128,128,128,2,1,0,0,0 128,128,128,1,1,0,0,0 64,128,128,1,1,0,0,0 128,192,128,2,1,0,0,0 192,128,128,1,2,0,0,0
      128,256,128,1,1,1,0,0 128,256,128,2,1,1,0,0 ${few_rows})
    te_int8_add_gemms(gemm_sm90 90a float32 "${fields}"
      128,128,128,2,1,0,0,0 128,128,128,1,1,0,0,0 64,128,128,1,1,0,0,0)
    set(outs float32 bfloat16 half)
    if(TE_INT8_TILES STREQUAL "ONE")
      set(outs float32)
    endif()
    te_int8_add_gemms(gemm_sm90 90a "${outs}" "${fields}" 128,128,128,2,1,0,0,1)
    te_int8_add_gemms(convolution_sm90 90a "${outs}" "${fields}" 128,128,128,1,1,0,0,0 256,64,64,1,1,1,0,0)
  endif()
  if(te_int8_old_architectures)
    set(fields TILE_M TILE_N TILE_K WARP_M WARP_N STAGES)
    te_int8_add_gemms(gemm_sm80 "${te_int8_old_architectures}" "bfloat16;half" "${fields}"
      128,256,64,64,64,3 128,128,128,64,64,3 64,128,128,32,64,3)
    te_int8_add_gemms(gemm_sm80 "${te_int8_old_architectures}" float32 "${fields}"
      128,128,128,64,64,3 64,128,128,32,64,3)
  endif()
endif()
