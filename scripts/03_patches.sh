#!/usr/bin/env bash
# Figure 1: the image patches that excite the top feature maps most, as collages.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
reproduce patches
