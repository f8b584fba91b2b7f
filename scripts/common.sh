# Sourced by the numbered scripts: settings from the environment, and the call that all of them make.
# shellcheck shell=bash
usage() {
  cat <<TEXT
usage: [DATA=DIR] [OUT=DIR] [DEVICE=auto|cpu|cuda] $0 [FLAGS OF reproduce.py]
  $(sed -n '2s/^# //p' "$0")
  DATA        folder of the generators' folders (ForenSynths); OUT: results (output); DEVICE: auto
  ARCHS       detectors (resnet50 efb0); k is 114 and 27, or TOPK_<arch>
  GENERATORS  folders of DATA (the paper's seven that are there); RANK_ON: the one to rank on (progan_val)
  TAG         augmentation of the detectors (0.5); WEIGHTS_<arch>, RELEVANCES_<arch>: files of your own
  NUM_INSTANCES, BSIZE: images of each class and label (all), images in a batch (16)
What is done is skipped; what was interrupted goes on. All other flags: python src/reproduce.py --help
TEXT
}

# begin FLAGS: settings from the environment; flags are passed on, as far as a variable does not stand for them
begin() {
  local flag index
  for flag in "$@"; do
    case "$flag" in
      -h | --help)
        usage
        exit 0
        ;;
      --arch | --arch=* | --blur_jpg* | --output_dir* | --dataset_dir* | --only*)
        echo "error: $flag: set ARCHS, TAG, OUT or DATA instead, or call src/reproduce.py (see $0 --help)" >&2
        exit 2
        ;;
    esac
  done
  FLAGS=("$@")
  ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  DATA="${DATA:-ForenSynths}"
  OUT="${OUT:-output}"
  TAG="${TAG:-0.5}"
  read -ra ARCHS <<<"${ARCHS:-resnet50 efb0}"
  # the spelling of folders and variables
  for index in "${!ARCHS[@]}"; do
    ARCHS[index]="${ARCHS[index],,}"
    [[ ! "${ARCHS[index]}" =~ ^efficientnet[-_]?b([0-9])$ ]] || ARCHS[index]="efb${BASH_REMATCH[1]}"
  done
  if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ ! -x "$ROOT/.venv/bin/python" ]] || PYTHON="$ROOT/.venv/bin/python"
  fi
  if [[ ! -d "$DATA" ]]; then
    echo "error: no data set folder $DATA: set DATA to the folder of the generators' folders (see $0 --help)" >&2
    exit 2
  fi
}

# of_archs FLAG PREFIX: "FLAG arch=VALUE ..." for the variables PREFIX_<arch> that are set, appended to ARGUMENTS
of_archs() {
  local arch variable values=()
  for arch in "${ARCHS[@]}"; do
    variable="$2_$arch"
    [[ -z "${!variable:-}" ]] || values+=("$arch=${!variable}")
  done
  [[ ${#values[@]} -eq 0 ]] || ARGUMENTS+=("$1" "${values[@]}")
}

# reproduce STEP: one analysis of all detectors on all generators
reproduce() {
  local names=()
  ARGUMENTS=(--arch "${ARCHS[@]}" --blur_jpg "$TAG" --dataset_dir "$DATA" --output_dir "$OUT"
    --device "${DEVICE:-auto}" --bsize "${BSIZE:-16}")
  read -ra names <<<"${GENERATORS:-}"
  [[ ${#names[@]} -eq 0 ]] || ARGUMENTS+=(--gan_name "${names[@]}")
  [[ -z "${RANK_ON:-}" ]] || ARGUMENTS+=(--rank_on "$RANK_ON")
  [[ -z "${NUM_INSTANCES:-}" ]] || ARGUMENTS+=(--num_instances "$NUM_INSTANCES")
  of_archs --weights "${WEIGHTS_PREFIX:-WEIGHTS}"
  of_archs --relevances RELEVANCES
  of_archs --topk TOPK
  "$PYTHON" "$ROOT/src/reproduce.py" "${ARGUMENTS[@]}" ${FLAGS[@]+"${FLAGS[@]}"} --only "$@"
}
