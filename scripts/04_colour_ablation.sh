#!/usr/bin/env bash
# Figure 4: AP and p(fake) in colour and in greyscale, with box-whisker plots.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
reproduce colour
