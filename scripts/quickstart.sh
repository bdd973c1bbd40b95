#!/usr/bin/env bash
# Sets up what is missing, builds, and runs examples/quickstart. scripts/setup.sh lists the variables it reads.
set -euo pipefail
# shellcheck source=scripts/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

set_up
build "$BUILD" quickstart
step "run build/bin/quickstart"
"$BUILD/bin/quickstart" "$@"
