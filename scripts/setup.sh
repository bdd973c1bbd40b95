# Everything that scripts/quickstart.sh and scripts/test.sh need before they build. Sourced by both.
#
#   TE_INT8_TORCH=DIR                   a LibTorch of your own instead of pip's; its CUDA, or none, decides what is built
#   TE_INT8_CUDA=AUTO|ON|OFF            compile CUDA code?
#   TE_INT8_CUDA_ARCHITECTURES="80;90a" for which GPUs; those that are here
#   TE_INT8_TILES=ALL|ONE               how many of CUTLASS's kernels; ALL where there is a GPU
#   TE_INT8_BUILD_TYPE=Release          or Debug, RelWithDebInfo
#   TE_INT8_PYTHON=/usr/bin/python3     the Python that .venv is made with
#   TE_INT8_JOBS=N                      compilers at a time
#
# What is fetched lands in .venv and .deps; no file of the system is edited, and packages are all that is
# installed there. What is already there is not fetched again.
# shellcheck shell=bash

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/steps.sh
. "$scripts/lib/steps.sh"
# shellcheck source=scripts/lib/torch.sh
. "$scripts/lib/torch.sh"
# shellcheck source=scripts/lib/packages.sh
. "$scripts/lib/packages.sh"
# shellcheck source=scripts/lib/build.sh
. "$scripts/lib/build.sh"

set_up_tools() {
  mkdir -p "$DEPS"
  install_packages
  set_up_catch2
  set_up_text
  set_up_glosses
  set_up_fashion
  set_up_dictionary
  set_up_torch
  set_up_minilm
  set_up_nvcc
  set_up_cutlass
  say_device
}

set_up() {
  set_up_tools
  local options=("-DCMAKE_BUILD_TYPE=${TE_INT8_BUILD_TYPE:-Release}" "-DTE_INT8_CUDA=${TE_INT8_CUDA:-AUTO}")
  if [[ -n $WITH_CUDA ]]; then
    choose_kernels
    options+=("-DCMAKE_CUDA_ARCHITECTURES=$ARCHITECTURES" "-DTE_INT8_TILES=$TILES")
  fi
  configure release "$BUILD" "${options[@]}"
}
