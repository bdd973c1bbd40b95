# Steps: each prints one line; one that fails is named, with its remedy. Sourced, not run.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
DEPS=$ROOT/.deps
LOGS=$DEPS/log
STEP="start"
REMEDY=""
INTERACTIVE=
[[ -t 0 ]] && INTERACTIVE=1

# step TEXT [REMEDY]: what happens next, and what the user can do should it fail.
step() {
  STEP=$1
  REMEDY=${2:-}
  printf '==> %s\n' "$1"
}

note() { printf '    %s\n' "$1"; }

# fail MESSAGE [REMEDY]
fail() {
  trap - ERR
  printf 'error: step "%s": %s\n' "$STEP" "$1" >&2
  local remedy=${2:-$REMEDY}
  [[ -z $remedy ]] || printf '  Remedy: %s\n' "$remedy" >&2
  exit 1
}

# logged NAME COMMAND...: a command whose output matters only when it fails.
logged() {
  local log=$LOGS/$1.log code=0
  shift
  mkdir -p "$LOGS"
  "$@" >"$log" 2>&1 </dev/null || code=$?
  if ((code)); then
    tail -n 25 "$log" >&2
    fail "expected exit code 0, got $code, from: $* (all of its output: $log)"
  fi
}

# need_disk MEGABYTES DIRECTORY WHAT: before a download fills the disk.
need_disk() {
  local free
  mkdir -p "$2"
  free=$(df -Pm "$2" | awk 'NR == 2 { print $4 }')
  ((free >= $1)) || fail "$3 needs $1 MB of disk below $2, got $free MB" "free some space there"
}

# up_to_date FILE TEXT / record FILE TEXT: has this been done, with these very versions?
up_to_date() { [[ -f $1 && $(<"$1") == "$2" ]]; }
record() { printf '%s\n' "$2" >"$1"; }

# as_root COMMAND...
as_root() {
  if ((EUID == 0)); then
    "$@"
  elif [[ -n $INTERACTIVE ]]; then
    sudo "$@"
  else
    sudo -n "$@" # without a terminal nobody could type a password
  fi
}

set -E # functions too
trap 'fail "expected exit code 0, got $?, from: $BASH_COMMAND"' ERR
