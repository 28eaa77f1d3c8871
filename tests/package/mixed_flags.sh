#!/usr/bin/env bash
# A function that takes a view, in a file compiled for AVX2, cannot be called from one compiled without. FFTW's planner lock
# is one for both.
#   mixed_flags.sh FOLDER COMPILER ARGUMENTS.. (of which -fsyntax-only is left out)
set -euo pipefail
folder=$1/mixed_flags
shift
compile=("${@/-fsyntax-only/-c}")
mkdir -p "$folder"
cd "$folder"

printf '%s\n' '#include "fastrope/core/tensor_view.hpp"' 'void use(fastrope::TensorView<const float>) {}' >use.cpp
printf '%s\n' '#include "fastrope/core/tensor_view.hpp"' 'void use(fastrope::TensorView<const float>);' \
  'int main() { use({}); }' >main.cpp
"${compile[@]}" -march=x86-64-v3 main.cpp -o main.o
"${compile[@]}" -march=x86-64-v3 use.cpp -o use_v3.o
"${compile[@]}" -march=x86-64 use.cpp -o use.o

"${compile[0]}" main.o use_v3.o -o same
if "${compile[0]}" main.o use.o -o mixed 2>errors; then
  echo "error: files compiled for v3 and for the baseline link to each other" >&2
  exit 1
fi
grep 'undefined reference.*use(fastrope::avx2::' errors

printf '%s\n' '#include "fastrope/toeplitz/fftw.hpp"' 'const void* LOCK() { return &fastrope::fftw_planner_mutex; }' >lock.cpp
printf '%s\n' 'const void* first();' 'const void* second();' 'int main() { return first() == second() ? 0 : 1; }' >locks.cpp
"${compile[@]}" -march=x86-64-v2 -DLOCK=first lock.cpp -o first.o
"${compile[@]}" -march=x86-64-v3 -DLOCK=second lock.cpp -o second.o
"${compile[@]}" locks.cpp -o locks.o
"${compile[0]}" first.o second.o locks.o -o locks
./locks || { echo "error: FFTW's planner lock is another one in files of other flags" >&2 && exit 1; }
