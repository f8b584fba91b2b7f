#!/usr/bin/env bash
# Table 1: AP and accuracies without the top k, random k and lowest k feature maps.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
reproduce sensitivity
