#!/usr/bin/env bash
# Installs what the build needs on Debian 12 and Ubuntu 22.04 or later. This is the one list of dependencies:
# quickstart, tests and CI all call it. Quick when nothing is missing.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: launch/install-deps.sh [--quickstart] [--interop] [--fuzz] [--print]
  --quickstart  also the text that launch/quickstart.sh trains on, and not what only the format check needs
  --interop     also what tests/run.sh --interop needs
  --fuzz        also what tests/fuzz/run.sh needs
  --print       lists the packages and installs nothing
EOF
}

packages=(
  build-essential cmake ninja-build ccache pkg-config git   # build
  libopenmpi-dev openmpi-bin                                # ranks
  libdnnl-dev libhwy-dev                                    # matrix products, SIMD
  libprotobuf-dev protobuf-compiler nlohmann-json3-dev      # configuration, checkpoints, tokenizer files
  libutf8proc-dev                                           # Unicode normalisation
  zlib1g-dev libzstd-dev                                    # compressed text
  libspdlog-dev libfmt-dev                                  # log
  libboost-dev libboost-context-dev                         # oracles in tests; fibers of the emulated GPU
  libgtest-dev libgmock-dev iproute2                        # tests; hosts made of network namespaces
)
format_check=(clang-format)

print=false fuzz=false
for argument in "$@"; do
  case $argument in
    --quickstart) packages+=(dict-gcide) format_check=() ;;
    --interop) packages+=(python3-venv dict-gcide) ;;
    --fuzz) packages+=(clang llvm) fuzz=true ;;
    --print) print=true ;;
    --help | -h) usage; exit 0 ;;
    *) echo "install-deps.sh: unknown option $argument" >&2; usage >&2; exit 2 ;;
  esac
done
packages+=(${format_check[@]+"${format_check[@]}"})
if $print; then
  printf '%s\n' "${packages[@]}"
  exit 0
fi

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "install-deps.sh: this machine has no apt. Install the equivalents of these Debian packages, then build with" >&2
  echo "  cmake --preset cpu && cmake --build --preset cpu" >&2
  printf '  %s\n' "${packages[@]}" >&2
  exit 1
fi

# The runtime of libFuzzer is a package of its own on Debian, and part of clang on Ubuntu 22.04.
if $fuzz && apt-cache show libclang-rt-dev >/dev/null 2>&1; then packages+=(libclang-rt-dev); fi

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "install-deps.sh: missing ${missing[*]}. Install them as root: neither root nor sudo is at hand." >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "Installing ${missing[*]}"
# dpkg may be busy with the machine's own first update: wait for it rather than fail.
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
"${apt[@]}" update
if ! "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; then
  echo "install-deps.sh: installation failed. On Ubuntu these packages are in 'universe':" \
       "sudo add-apt-repository universe" >&2
  exit 1
fi
