# Shared by the scripts: where the project is, and the packages it is built with.
# shellcheck shell=bash disable=SC2034  # used by the scripts
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '== %s\n' "$*"; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

jobs=$(getconf _NPROCESSORS_ONLN)

# Each tool and the Debian package that has it; then the Debian packages of the libraries.
tools=("${CXX:-c++}:g++" cmake:cmake ninja:ninja-build pkg-config:pkg-config)
libraries=(libeigen3-dev libfftw3-dev libhwy-dev libgtest-dev libgmock-dev libbenchmark-dev libspectra-dev)

# Installs what is missing on Debian and its relatives; elsewhere says what is needed.
ensure_packages() {
  local missing=() tool library
  for tool in "${tools[@]}"; do
    command -v "${tool%:*}" >/dev/null || missing+=("${tool##*:}")
  done

  if ! command -v apt-get >/dev/null; then
    say "not a Debian system: the libraries that vcpkg.json lists must be installed where CMake finds them"
    ((${#missing[@]} == 0)) || fail "please install: ${missing[*]}"
    return
  fi

  for library in "${libraries[@]}"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$library" 2>/dev/null) == installed ]] || missing+=("$library")
  done
  ((${#missing[@]} > 0)) || return 0

  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || fail "please install, as root: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing with apt-get: ${missing[*]}"
  "${as_root[@]}" apt-get update -q </dev/null
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null
}
