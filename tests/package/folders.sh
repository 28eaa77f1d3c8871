#!/usr/bin/env bash
# A header includes headers of its own folder and of those before it alone: what measures, decides and runs stays
# apart. Prints every include that goes the other way.
#   folders.sh INCLUDE_DIRECTORY
set -euo pipefail
cd "$1/fastrope"
order=(core position problem exact polynomial toeplitz measure plan attend gradient mpi spectral)

failed=0
for ((f = 0; f < ${#order[@]}; ++f)); do
  allowed=$(IFS='|' && echo "${order[*]:0:f+1}")
  if grep -rnE '#include "fastrope/[a-z]+/' "${order[f]}" | grep -vE "#include \"fastrope/($allowed)/"; then failed=1; fi
done
for folder in */; do
  [[ " ${order[*]} " == *" ${folder%/} "* ]] || { echo "$folder has no place in the order" && failed=1; }
done
exit "$failed"
