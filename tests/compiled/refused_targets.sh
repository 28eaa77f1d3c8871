#!/usr/bin/env bash
# A target that the library does not have, or the processor does not run, is refused with a message that names those
# that it does run.
#   refused_targets.sh PROGRAM LEVEL..
set -euo pipefail
program=$1
shift
last=${*: -1} # which every processor runs

refuses() {
  local message status=0
  message=$(FASTROPE_TARGET=$1 "$program" 2>&1) || status=$?
  echo "$message"
  ((status == 77)) && [[ $message == *"FASTROPE_TARGET=$1, which $2"*" $last"* ]]
}
refuses avx9 "this library does not have"
FASTROPE_TARGET='' "$program" # asks for nothing
for level in "$@"; do
  FASTROPE_TARGET=$level "$program" >/dev/null 2>&1 || refuses "$level" "this processor does not run"
done
