#!/usr/bin/env bash
# Colour-robust detectors beside the others, in colour and greyscale; needs WEIGHTS_CR_<arch>.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
begin "$@"
for arch in "${ARCHS[@]}"; do
  variable="WEIGHTS_CR_$arch"
  if [[ -z "${!variable:-}" ]]; then
    echo "error: $variable is not set: name the checkpoint of train_cr_ud.py, or leave $arch out of ARCHS" >&2
    exit 2
  fi
done
reproduce colour
TAG=cr WEIGHTS_PREFIX=WEIGHTS_CR reproduce colour
for arch in "${ARCHS[@]}"; do
  cat "$OUT/grayscale-transfer/$arch/grayscale-transfer_$TAG.md" "$OUT/grayscale-transfer/$arch/grayscale-transfer_cr.md"
done
