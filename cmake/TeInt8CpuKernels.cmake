# Compiles the kernels of the back end "cpu" once per instruction set; src/cpu/isa.cpp chooses at run time.
# They see no Torch header, so no function that a linker could share with other code is compiled for a
# processor that may not be there.
set(te_int8_isas plain)
set(te_int8_isa_flags_plain)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  list(APPEND te_int8_isas avx2 avx512_vnni)
  set(te_int8_isa_flags_avx2 -mavx2 -mfma -mf16c)
  set(te_int8_isa_flags_avx512_vnni
    -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx2 -mfma -mf16c)
endif()
foreach(isa IN LISTS te_int8_isas)
  add_library(te_int8_cpu_${isa} OBJECT src/cpu/kernels.cpp)
  target_compile_features(te_int8_cpu_${isa} PRIVATE cxx_std_20)
  target_compile_definitions(te_int8_cpu_${isa} PRIVATE TE_INT8_ISA=${isa})
  # A fused multiply-add would round once where the number format rounds twice. GCC 12's own headers warn.
  target_compile_options(te_int8_cpu_${isa} PRIVATE
    -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math ${te_int8_isa_flags_${isa}}
    $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized;-Wno-maybe-uninitialized>)
  target_link_libraries(te_int8_cpu_${isa} PRIVATE te_int8_flags)
  target_sources(te_int8 PRIVATE $<TARGET_OBJECTS:te_int8_cpu_${isa}>)
endforeach()

# at::parallel_for runs on LibTorch's threads only where it is compiled with OpenMP, and only with the OpenMP
# library that LibTorch itself loads is there one pool of threads. (A precompiled header would have to
# agree on the flag.)
file(GLOB te_int8_openmp ${TE_INT8_TORCH_ROOT}/lib/libgomp*.so*)
if(NOT te_int8_openmp)
  set(te_int8_openmp gomp)
endif()
list(GET te_int8_openmp 0 te_int8_openmp)
target_link_libraries(te_int8 PRIVATE ${te_int8_openmp})
set_source_files_properties(src/cpu/convolve.cpp src/cpu/multiply.cpp src/cpu/quantize.cpp PROPERTIES
  COMPILE_OPTIONS -fopenmp SKIP_PRECOMPILE_HEADERS ON)
