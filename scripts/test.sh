#!/usr/bin/env bash
# Sets up what is missing, builds everything and runs every test; arguments go to ctest. The last line is
# 'N passed, N failed, N skipped', counted in test cases. scripts/setup.sh lists the variables it reads.
set -euo pipefail
# shellcheck source=scripts/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

set_up
build "$BUILD"
run_tests "$BUILD" "$@" || exit 1 # nothing is printed after the count
