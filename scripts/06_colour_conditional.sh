#!/usr/bin/env bash
# Share of the top feature maps that depend on colour, for each generator.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
reproduce median_test
for arch in "${ARCHS[@]}"; do
  cat "$OUT/median_test/${arch}_$TAG/color_conditional.md"
done
