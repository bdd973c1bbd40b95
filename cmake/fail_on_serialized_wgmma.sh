#!/bin/sh
# Runs a compiler, and fails where ptxas says that it serialised wgmma (C7510): a kernel is then several times slower,
# and ptxas does not even call it a warning.
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
"$@" >"$log" 2>&1
code=$?
cat "$log" >&2
if grep -q C7510 "$log"; then
  echo "te_int8: expected wgmma to run asynchronously, got C7510 above" >&2
  exit 1
fi
exit $code
