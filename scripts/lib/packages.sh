# Packages of the distribution, Catch2 3 where it is too old for that, and the text for train_text.
# shellcheck shell=bash

CATCH2_SUITE=bookworm-backports

distribution() { (. /etc/os-release && printf '%s %s' "${ID:-}" "${VERSION_ID:-}"); }

# has_header FILE: does the compiler find it?
has_header() { [[ -e /usr/include/$1 || -e /usr/local/include/$1 ]]; }

has_catch2() {
  local file
  for file in /usr/{lib/*,lib,share}/cmake/Catch2/Catch2ConfigVersion.cmake; do
    [[ -e $file ]] && grep -q 'PACKAGE_VERSION "[3-9]' "$file" && return
  done
  return 1
}

# The package for each thing that is missing. A compiler or CMake from elsewhere is as good.
missing_packages() {
  command -v "${CXX:-c++}" >/dev/null || echo g++
  command -v cmake >/dev/null || echo cmake
  command -v ninja >/dev/null || echo ninja-build
  [[ -x $PYTHON ]] || echo python3
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  "$PYTHON" -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null ||
    echo python3-dev # torch.compile builds extensions
  has_header CLI/CLI.hpp || echo libcli11-dev
  has_header benchmark/benchmark.h || echo libbenchmark-dev
  [[ -s $DEPS/data/kjv.txt ]] || command -v bible >/dev/null || echo bible-kjv
  [[ $(distribution) == "debian 12" ]] || has_catch2 || echo catch2
}

install_packages() {
  step "system packages: compiler, CMake, Ninja, Python, CLI11, Google Benchmark, bible-kjv"
  local missing command
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]})) || return 0
  command="apt-get install -y --no-install-recommends ${missing[*]}"
  note "missing: ${missing[*]}"
  if ! command -v apt-get >/dev/null; then
    fail "expected apt-get, as Debian and Ubuntu have it, got none" \
      "install what these Debian packages hold, then run this again: ${missing[*]}"
  fi
  if ((EUID != 0)) && ! command -v sudo >/dev/null; then
    fail "installing packages takes root" "as root: apt-get update && $command"
  fi
  REMEDY="as root: apt-get update && $command"
  need_disk 1000 /var/cache/apt "installing packages"
  logged apt-update as_root apt-get update
  # shellcheck disable=SC2086 # words on purpose
  logged apt-install as_root env DEBIAN_FRONTEND=noninteractive $command
  mapfile -t missing < <(missing_packages)
  if ((${#missing[@]})) && [[ ${missing[*]} != catch2 ]]; then
    fail "expected nothing to be missing after the installation, got ${missing[*]}"
  fi
}

# Debian 12 has Catch2 2. Version 3 is in its backports, which are read here through package lists of
# our own, so that the system's sources stay as they are, and unpacked into .deps. Anywhere else CMake
# fetches it where it is missing.
set_up_catch2() {
  step "Catch2 3"
  if has_catch2 || [[ -d $DEPS/catch2/usr ]] || [[ $(distribution) != "debian 12" ]]; then
    return 0
  fi
  note "from $CATCH2_SUITE, into .deps/catch2"
  local apt=$DEPS/apt mirror
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/download"
  # shellcheck disable=SC2016 # apt-get replaces these
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' |
    awk '$2 == "bookworm" { print $1; exit }')
  if [[ -z $mirror ]]; then
    note "the system names no mirror of bookworm: CMake will fetch Catch2 instead"
    return 0
  fi
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $CATCH2_SUITE main" \
    >"$apt/sources.list"
  local options=(
    -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache"
    -o APT::Sandbox::User=root -o Acquire::Languages=none)
  # shellcheck disable=SC2034 # fail reads it
  REMEDY="install Catch2 3 by hand, or see whether $mirror has $CATCH2_SUITE"
  logged catch2-lists apt-get "${options[@]}" update
  logged catch2 env -C "$apt/download" apt-get "${options[@]}" download "libcatch2-dev/$CATCH2_SUITE"
  logged catch2-unpack dpkg -x "$apt"/download/libcatch2-dev_3*.deb "$DEPS/catch2.part"
  mv "$DEPS/catch2.part" "$DEPS/catch2"
  rm -rf "$apt"
}

set_up_text() {
  step "the text for train_text: .deps/data/kjv.txt, the King James Bible" \
    "remove .deps/data and see whether 'bible -f gen1:1-rev22:21' prints a text"
  local file=$DEPS/data/kjv.txt bytes
  [[ -s $file ]] && return 0
  mkdir -p "$DEPS/data"
  bible -f gen1:1-rev22:21 >"$file.part" </dev/null
  bytes=$(wc -c <"$file.part")
  ((bytes > 4000000)) || fail "expected some 4.4 MB of text, got $bytes bytes"
  mv "$file.part" "$file"
}
