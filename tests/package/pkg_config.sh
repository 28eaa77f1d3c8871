#!/bin/sh
# Builds consumer/ with what pkg-config says and nothing else, so also for the baseline instruction set, and compares
# the version it says with the headers'.
set -eu
export PKG_CONFIG_PATH="$PREFIX/share/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
consumer=$(dirname "$0")/consumer

# shellcheck disable=SC2046  # a list of flags
$CXX -std=c++20 -O0 "$consumer/main.cpp" "$consumer/second_unit.cpp" \
  $($PKG_CONFIG --cflags --libs fastrope) -o "$PROGRAM"

printed=$("$PROGRAM")
expected="fastrope $($PKG_CONFIG --modversion fastrope)"
[ "$printed" = "$expected" ] || { echo "the program says '$printed', pkg-config '$expected'"; exit 1; }
