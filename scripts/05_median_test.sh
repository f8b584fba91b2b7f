#!/usr/bin/env bash
# Figure 6: activations of the top feature maps in colour and greyscale, with Mood's median test.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
reproduce median_test
