# Finds a LibTorch and defines the target te_int8::torch. te_int8's own build and its installed
# package both use this file.
#
#   te_int8_find_torch([FALLBACK dir...])
#
# sets TE_INT8_TORCH_ROOT, TE_INT8_TORCH_VERSION (like 2.11.0), TE_INT8_TORCH_CUDA (like 13.0, empty
# without CUDA) and, when no LibTorch can be used, TE_INT8_TORCH_ERROR; inside te_int8's own build
# that error is fatal.
#
# Why not find_package(Torch): Torch's package files stop on a machine without nvcc even for programs
# of host code only, and they ignore CMAKE_CUDA_ARCHITECTURES. Only the places named below are
# searched, never the system's folders, so that a distribution's old libtorch is not picked up by
# accident. A project may call find_package(Torch) as well, before or after.

# A LibTorch is a folder with include/ATen and lib/libtorch_cpu.so. Candidates may name that folder,
# the one above it, or Torch's CMake folder inside it (torch.utils.cmake_prefix_path, Torch_DIR).
function(_te_int8_torch_root candidate out)
  set(${out} "" PARENT_SCOPE)
  string(REGEX REPLACE "/share/cmake(/Torch)?/?$" "" candidate "${candidate}")
  foreach(root IN ITEMS "${candidate}" "${candidate}/torch" "${candidate}/libtorch")
    if(EXISTS "${root}/include/ATen/ATen.h" AND EXISTS "${root}/lib/libtorch_cpu.so")
      get_filename_component(root "${root}" REALPATH)
      set(${out} "${root}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

function(_te_int8_torch_version root out)
  set(version "")
  foreach(header IN ITEMS torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
    if(EXISTS "${root}/include/${header}" AND version STREQUAL "")
      file(STRINGS "${root}/include/${header}" lines REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
      string(REGEX MATCHALL "[0-9]+" version "${lines}")
      list(JOIN version "." version)
    endif()
  endforeach()
  set(${out} "${version}" PARENT_SCOPE)
endfunction()

# Wheels say their CUDA version in version.py, zips in build-version ('2.11.0+cu130'); what neither
# says is read from the name of the CUDA runtime beside the library.
function(_te_int8_torch_cuda root out)
  set(cuda "")
  if(EXISTS "${root}/lib/libtorch_cuda.so")
    if(EXISTS "${root}/version.py")
      file(STRINGS "${root}/version.py" line REGEX "^cuda")
      string(REGEX MATCH "[0-9]+\\.[0-9]+" cuda "${line}")
    endif()
    if(cuda STREQUAL "" AND EXISTS "${root}/build-version")
      file(STRINGS "${root}/build-version" line LIMIT_COUNT 1)
      if(line MATCHES "\\+cu([0-9]+)([0-9])$")
        set(cuda "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}")
      endif()
    endif()
    if(cuda STREQUAL "")
      file(GLOB runtime "${root}/lib/libcudart*.so.*" "${root}/../nvidia/cu*/lib/libcudart.so.*")
      string(REGEX MATCH "\\.so\\.([0-9]+)" runtime "${runtime}")
      set(cuda "${CMAKE_MATCH_1}.0")
    endif()
  endif()
  set(${out} "${cuda}" PARENT_SCOPE)
endfunction()

function(_te_int8_define_torch root)
  # libtorch.so itself is left out: it holds nothing but the names of these.
  set(libraries torch_cpu c10)
  if(EXISTS "${root}/lib/libtorch_cuda.so")
    list(APPEND libraries torch_cuda c10_cuda)
  endif()
  list(TRANSFORM libraries REPLACE "(.+)" "${root}/lib/lib\\1.so")

  # Nothing in a program names a symbol of libtorch_cuda; it registers itself when it is loaded. The
  # linkers of some distributions drop such a library unless they are told not to.
  set(loaded ${libraries})
  list(FILTER loaded INCLUDE REGEX "libtorch_(cpu|cuda)\\.so$")
  list(TRANSFORM loaded REPLACE "(.+)" "\"\\1\"")
  list(JOIN loaded "," loaded)

  # Some of Torch's classes change their layout with these macros, so they must be what it was built with.
  set(definitions "")
  set(targets "${root}/share/cmake/Caffe2/Caffe2Targets.cmake")
  if(EXISTS "${targets}")
    file(STRINGS "${targets}" line REGEX "INTERFACE_COMPILE_DEFINITIONS \"USE_DISTRIBUTED" LIMIT_COUNT 1)
    string(REGEX MATCHALL "USE_[A-Z0-9_]+" definitions "${line}")
  endif()

  add_library(te_int8::torch INTERFACE IMPORTED GLOBAL)
  set_target_properties(te_int8::torch PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${root}/include;${root}/include/torch/csrc/api/include"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${root}/include;${root}/include/torch/csrc/api/include"
    INTERFACE_COMPILE_DEFINITIONS "${definitions}"
    INTERFACE_COMPILE_FEATURES cxx_std_20
    INTERFACE_LINK_LIBRARIES "-Wl,--push-state,--no-as-needed,${loaded},--pop-state;${libraries}")
endfunction()

macro(te_int8_find_torch)
  cmake_parse_arguments(_te_int8 "" "" FALLBACK ${ARGN})
  _te_int8_find_torch()
  if(TE_INT8_TORCH_ERROR AND PROJECT_NAME STREQUAL "te_int8")
    message(FATAL_ERROR "${TE_INT8_TORCH_ERROR}")
  endif()
endmacro()

function(_te_int8_find_torch)
  # The first release whose Linux builds all use the C++11 ABI.
  set(minimum 2.7.0)
  set(TE_INT8_TORCH_ERROR "" PARENT_SCOPE)
  set(root "")
  set(searched "")
  if(TE_INT8_TORCH)
    # What the user names is used or refused, never passed over.
    set(places "${TE_INT8_TORCH}")
  elseif(TARGET torch)
    # The project's own LibTorch is the only one its programs can hold.
    get_target_property(location torch IMPORTED_LOCATION_RELEASE)
    if(NOT location)
      get_target_property(location torch LOCATION)
    endif()
    get_filename_component(places "${location}" DIRECTORY)
    get_filename_component(places "${places}" DIRECTORY)
  else()
    set(places ${Torch_DIR} ${CMAKE_PREFIX_PATH})
    string(REPLACE ":" ";" environment "$ENV{CMAKE_PREFIX_PATH}")
    list(APPEND places ${environment} ${_te_int8_FALLBACK})
  endif()
  foreach(place IN LISTS places)
    if(root STREQUAL "")
      _te_int8_torch_root("${place}" root)
      string(APPEND searched "\n    ${place}")
    endif()
  endforeach()

  if(root STREQUAL "")
    if(searched STREQUAL "")
      set(searched " nowhere, as neither TE_INT8_TORCH nor CMAKE_PREFIX_PATH is set")
    endif()
    set(TE_INT8_TORCH_ERROR
      "te_int8: found no LibTorch (a folder with include/ATen/ATen.h and lib/libtorch_cpu.so). Looked at:${searched}\n  Remedy: -DTE_INT8_TORCH=DIR, where DIR is an unpacked libtorch or what\n    python -c 'import torch; print(torch.__path__[0])'\n  prints; in a checkout of te_int8, scripts/quickstart.sh fetches one."
      PARENT_SCOPE)
    return()
  endif()

  _te_int8_torch_version("${root}" version)
  _te_int8_torch_cuda("${root}" cuda)
  if(version VERSION_LESS minimum)
    set(TE_INT8_TORCH_ERROR
      "te_int8: expected LibTorch ${minimum} or later, got ${version} in ${root}.\n  Remedy: -DTE_INT8_TORCH=DIR with a newer one."
      PARENT_SCOPE)
    return()
  endif()
  set(TE_INT8_TORCH_ROOT "${root}" PARENT_SCOPE)
  set(TE_INT8_TORCH_VERSION "${version}" PARENT_SCOPE)
  set(TE_INT8_TORCH_CUDA "${cuda}" PARENT_SCOPE)
  if(NOT TARGET te_int8::torch)
    if(cuda)
      message(STATUS "te_int8: LibTorch ${version} with CUDA ${cuda} in ${root}")
    else()
      message(STATUS "te_int8: LibTorch ${version} without CUDA in ${root}")
    endif()
    _te_int8_define_torch("${root}")
  endif()
endfunction()
