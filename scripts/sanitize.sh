#!/usr/bin/env bash
# Builds the tests with the address and undefined-behaviour sanitizers in build-sanitize/ and runs those of
# the guard and the operations; arguments go to ctest instead of that choice.
set -euo pipefail
# shellcheck source=scripts/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

(($#)) || set -- --label-regex '^(guard|operators)$'
export UBSAN_OPTIONS=print_stacktrace=1

set_up_tools
configure sanitize "$ROOT/build-sanitize"
build "$ROOT/build-sanitize" te_int8_tests
run_tests "$ROOT/build-sanitize" "$@" || exit 1 # nothing is printed after the count
