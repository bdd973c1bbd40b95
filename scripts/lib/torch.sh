# LibTorch and the CUDA compiler that fits it.
# shellcheck shell=bash

VENV=$ROOT/.venv
TORCH_PINS="torch==2.11.0 numpy==2.4.6"
# The CUDA of LibTorch 2.11. Of packages that are not pinned here pip takes newer ones, which do not fit this nvcc.
NVCC_PINS="cuda-toolkit[nvcc,cccl]==13.0.2 nvidia-cuda-runtime==13.0.96 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88"
NVCC_MAJOR=13
CUTLASS_PINS="nvidia-cutlass==4.2.0.0"

# Debian's Python unless the user names one: apt can supply what it lacks.
PYTHON=${TE_INT8_PYTHON:-/usr/bin/python3}

# pip_install NAME ARGUMENTS...: pip's temporary files beside the goal, so that one check of the disk is enough.
pip_install() {
  local name=$1
  shift
  mkdir -p "$DEPS/tmp"
  TMPDIR=$DEPS/tmp logged "$name" "$VENV/bin/python" -m pip install --disable-pip-version-check "$@"
}

make_venv() {
  [[ -x $VENV/bin/python ]] && "$VENV/bin/python" -c 'import pip' 2>/dev/null && return
  need_disk 100 "$ROOT" "a Python environment"
  logged venv "$PYTHON" -m venv "$VENV"
}

# Sets TORCH_DIR and TORCH_CUDA ('13.0', or nothing).
set_up_torch() {
  if [[ -n ${TE_INT8_TORCH:-} ]]; then
    step "LibTorch: the one in TE_INT8_TORCH=$TE_INT8_TORCH" "name an unpacked libtorch, or the torch package folder of a Python environment"
    local dir
    TORCH_DIR=""
    for dir in "$TE_INT8_TORCH" "$TE_INT8_TORCH/libtorch" "$TE_INT8_TORCH/torch"; do
      if [[ -e $dir/lib/libtorch_cpu.so ]]; then
        TORCH_DIR=$(cd "$dir" && pwd -P)
        break
      fi
    done
    [[ -n $TORCH_DIR ]] || fail "expected lib/libtorch_cpu.so below $TE_INT8_TORCH, got no such file"
  else
    step "LibTorch: $TORCH_PINS by pip into .venv" "remove .venv and run this again; TE_INT8_TORCH=DIR uses a LibTorch that is already there"
    install_torch
  fi
  TORCH_CUDA=$(torch_cuda)
  if [[ -n $TORCH_CUDA ]]; then
    note "$TORCH_DIR, with CUDA $TORCH_CUDA"
  else
    note "$TORCH_DIR, without CUDA"
  fi
}

install_torch() {
  local stamp=$VENV/te_int8_pins
  if ! up_to_date "$stamp" "$TORCH_PINS"; then
    make_venv
    need_disk 9000 "$ROOT" "LibTorch with its CUDA libraries"
    note "2.5 GB to download, 5 GB unpacked: a few minutes"
    # shellcheck disable=SC2086 # words on purpose
    pip_install torch $TORCH_PINS
    record "$stamp" "$TORCH_PINS"
  fi
  TORCH_DIR=$(echo "$VENV"/lib/python3.*/site-packages/torch)
  [[ -e $TORCH_DIR/lib/libtorch_cpu.so ]] || fail "expected lib/libtorch_cpu.so in $TORCH_DIR, got no such file"
}

# The CUDA version that the LibTorch in TORCH_DIR was built for. Wheels name it in version.py, zips in build-version.
torch_cuda() {
  [[ -e $TORCH_DIR/lib/libtorch_cuda.so ]] || return 0
  if [[ -e $TORCH_DIR/version.py ]]; then
    sed -nE "s/^cuda.*'([0-9.]+)'.*/\1/p" "$TORCH_DIR/version.py"
  else
    sed -nE 's/.*\+cu([0-9]+)([0-9])$/\1.\2/p' "$TORCH_DIR/build-version"
  fi
}

# nvcc_fits MAJOR: is there an nvcc of this major version where CMake looks?
nvcc_fits() {
  local nvcc
  for nvcc in "${CUDACXX:-}" "${CUDA_HOME:-}/bin/nvcc" "${CUDA_PATH:-}/bin/nvcc" /usr/local/cuda/bin/nvcc \
    "$(command -v nvcc || true)"; do
    if [[ -x $nvcc ]] && "$nvcc" --version 2>/dev/null | grep -q "release $1\."; then
      NVCC=$nvcc
      return
    fi
  done
  return 1
}

# Sets WITH_CUDA where CUDA code can be compiled.
set_up_nvcc() {
  step "CUDA compiler" "TE_INT8_CUDA=OFF builds without it"
  local major=${TORCH_CUDA%%.*}
  WITH_CUDA=""
  if [[ ${TE_INT8_CUDA:-AUTO} == OFF ]]; then
    note "none needed: TE_INT8_CUDA is OFF"
  elif [[ -z $major ]]; then
    note "none needed: this LibTorch has no CUDA"
  elif nvcc_fits "$major"; then
    WITH_CUDA=1
    note "$NVCC"
  elif [[ $major != "$NVCC_MAJOR" ]]; then
    note "none: install nvcc $major.x to compile CUDA code; PyPI has version $NVCC_MAJOR only"
  else
    install_nvcc
    WITH_CUDA=1
  fi
}

# CUTLASS is headers only.
set_up_cutlass() {
  [[ -n $WITH_CUDA ]] || return 0
  step "CUTLASS: $CUTLASS_PINS by pip into .deps/cutlass" "TE_INT8_CUDA=OFF builds without it"
  local target=$DEPS/cutlass
  if ! up_to_date "$target/te_int8_pins" "$CUTLASS_PINS"; then
    make_venv
    need_disk 200 "$DEPS" "CUTLASS"
    rm -rf "$target"
    pip_install cutlass --no-deps --target "$target" "$CUTLASS_PINS"
    record "$target/te_int8_pins" "$CUTLASS_PINS"
  fi
}

# Sets ARCHITECTURES and TILES: all kernels for the GPUs that are here; where there are none, few of them, so that
# CUDA code is compiled at least.
choose_kernels() {
  local capabilities
  capabilities=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | tr -d .) || true
  [[ $capabilities =~ ^[0-9[:space:]]*$ ]] || capabilities=""
  capabilities=$(awk '$1 >= 75' <<<"$capabilities") # LibTorch runs on no older ones
  if [[ -n $capabilities ]]; then
    ARCHITECTURES=$(sed 's/^90$/90a/' <<<"$capabilities" | paste -sd ';')
    TILES=ALL
  else
    ARCHITECTURES="80;90a"
    TILES=ONE
  fi
  ARCHITECTURES=${TE_INT8_CUDA_ARCHITECTURES:-$ARCHITECTURES}
  TILES=${TE_INT8_TILES:-$TILES}
}

install_nvcc() {
  local target=$DEPS/cuda library
  local toolkit=$target/nvidia/cu$NVCC_MAJOR
  if ! up_to_date "$target/te_int8_pins" "$NVCC_PINS"; then
    make_venv
    need_disk 2000 "$DEPS" "the CUDA compiler"
    note "$NVCC_PINS by pip into .deps/cuda"
    rm -rf "$target"
    # shellcheck disable=SC2086 # words on purpose
    pip_install nvcc --target "$target" $NVCC_PINS
    # Wheels hold no names to link by, and CMake expects a toolkit's lib64.
    for library in "$toolkit"/lib/lib*.so.*; do
      ln -sfn "${library##*/}" "${library%%.so.*}.so"
    done
    ln -sfn lib "$toolkit/lib64"
    record "$target/te_int8_pins" "$NVCC_PINS"
  fi
  note "$toolkit/bin/nvcc"
}

# Says where programs will run. They find out by themselves; this is so that nobody wonders.
say_device() {
  [[ -n $TORCH_CUDA ]] || return 0
  local gpus driver
  if ! gpus=$(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader 2>/dev/null) || [[ -z $gpus ]]; then
    note "programs will use the CPU: no NVIDIA driver with a GPU answers"
    return 0
  fi
  driver=$(nvidia-smi | sed -nE 's/.*CUDA Version: ([0-9]+)\..*/\1/p')
  if [[ -n $driver ]] && ((driver < ${TORCH_CUDA%%.*})); then
    note "programs will use the CPU: the driver supports CUDA $driver, LibTorch needs CUDA ${TORCH_CUDA%%.*}"
  elif [[ $NVCC_MAJOR == "${TORCH_CUDA%%.*}" ]] && awk -F', ' '$2 >= 7.5 { good = 1 } END { exit good }' <<<"$gpus"; then
    note "programs will use the CPU: CUDA $TORCH_CUDA needs a GPU of compute capability 7.5, got ${gpus//$'\n'/, }"
  fi
}
