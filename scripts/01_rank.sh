#!/usr/bin/env bash
# Step 1: rank all feature maps of both detectors by FF-RS.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
reproduce ranking
