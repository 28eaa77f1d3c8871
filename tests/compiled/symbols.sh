#!/usr/bin/env bash
# What a linker sees of the library is its functions and FFTW's planner lock; and code that every processor has to run is
# of instructions that every processor has.
#   symbols.sh LIBRARY OBJECT.. (of the baseline)
set -euo pipefail
library=$1
shift

dynamic=()
[[ $library != *.so* ]] || dynamic=(-D)
visible=$(nm "${dynamic[@]}" --extern-only --defined-only "$library" | awk 'NF == 3 { print $3 }' | sort -u)
[[ $visible == *fastrope_attend* ]] || { echo "error: $library has no functions" >&2 && exit 1; }
if others=$(grep -vE '^(fastrope_[a-z0-9_]+|_ZN8fastrope18fftw_planner_mutexE)$' <<<"$visible"); then
  printf 'error: %s shows\n%s\n' "$library" "$others" >&2
  exit 1
fi

for object in "$@"; do
  if objdump -d --no-show-raw-insn "$object" | grep -m 5 -E '%[yz]mm|	v[a-z0-9]+ '; then
    echo "error: $object has instructions of AVX" >&2
    exit 1
  fi
done
