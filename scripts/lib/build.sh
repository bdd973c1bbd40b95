# Configures and builds in build/.
# shellcheck shell=bash

# shellcheck disable=SC2034 # the scripts that source this read it
BUILD=$ROOT/build

# Sets JOBS. A file that includes LibTorch takes up to 2.5 GB to compile.
count_jobs() {
  local cores memory limit
  cores=$(nproc)
  memory=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  if [[ $limit != max ]] && ((limit / 1048576 < memory)); then
    memory=$((limit / 1048576))
  fi
  [[ -n ${TE_INT8_JOBS:-} ]] || ((memory >= 2000)) || fail "compiling needs 2500 MB of memory, got $memory MB" "close other programs, or add swap and set TE_INT8_JOBS=1"
  local by_memory=$((memory / 2500))
  ((by_memory >= 1)) || by_memory=1
  JOBS=${TE_INT8_JOBS:-$((cores < by_memory ? cores : by_memory))}
}

# configure PRESET FOLDER [ARGUMENT...]: CMake runs again only when the arguments change; Ninja sees to
# CMake files that change.
configure() {
  local preset=$1 folder=$2
  shift 2
  local arguments=("-DTE_INT8_TORCH=$TORCH_DIR" "$@") fresh=()
  step "configure ${folder#"$ROOT/"}/" \
    "te_int8 needs CMake 3.25 or later; else remove ${folder#"$ROOT/"}/ and run this again"
  local stamp=$folder/te_int8_configured
  if [[ -e $folder/build.ninja ]] && up_to_date "$stamp" "${arguments[*]}"; then
    return 0
  fi
  # What an earlier configuration found out, with other arguments, must not leak into this one.
  [[ ! -e $stamp ]] || fresh=(--fresh)
  logged configure env -C "$ROOT" cmake --preset "$preset" "${fresh[@]}" "${arguments[@]}"
  sed -n 's/^-- te_int8:/   /p' "$LOGS/configure.log"
  record "$stamp" "${arguments[*]}"
}

# build FOLDER [TARGET...]
build() {
  local folder=$1
  shift
  count_jobs
  step "build ${*:-everything} in ${folder#"$ROOT/"}/, $JOBS at a time" \
    "the compiler's messages are above; with too little memory, set TE_INT8_JOBS=1"
  need_disk 2500 "$folder" "building"
  # The environment, as the tests build projects too.
  export CMAKE_BUILD_PARALLEL_LEVEL=$JOBS
  cmake --build "$folder" ${1:+--target "$@"}
}

# run_tests FOLDER [CTEST-ARGUMENT...]: prints failures as they come and the count of test cases last.
run_tests() {
  local folder=$1 code=0 results=$1/test-results.xml
  shift
  step "test in ${folder#"$ROOT/"}/" "rerun one with: ctest --test-dir ${folder#"$ROOT/"} -R NAME --output-on-failure"
  rm -f "$results"
  ctest --test-dir "$folder" --parallel "$(nproc)" --output-on-failure --no-tests=error \
    --test-output-size-passed 1000000 --test-output-size-failed 1000000 \
    --output-junit "$results" "$@" || code=$?
  # The count fails too when something failed, so that neither hides the other.
  "$PYTHON" "$ROOT/scripts/lib/count_tests.py" "$results" || code=1
  return "$code"
}
