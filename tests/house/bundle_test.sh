#!/usr/bin/env bash
# launch/bundle.sh: what it packs runs from another folder with nothing of this environment, alone and as two ranks.
# Usage: bundle_test.sh SOURCE_TREE BUILD_DIRECTORY
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $1" >&2; exit 1; }

"$1"/launch/bundle.sh --build "$2" --add "$1/LICENSE" -o "$work/bundle.tar.gz" || fail "bundle.sh: $?"
mkdir "$work/elsewhere"
tar -C "$work/elsewhere" -xf "$work/bundle.tar.gz"
bundle=$work/elsewhere/transxssm-bundle
[ -f "$bundle/LICENSE" ] || fail "--add left a file out"

# Every library but the C library's, the driver's and the CUDA toolkit's comes from the bundle.
for program in "$bundle"/programs/* "$bundle"/openmpi/plugins/*.so "$bundle"/pmix/*.so; do
  foreign=$(LD_LIBRARY_PATH=$bundle/lib ldd "$program" 2>/dev/null | sed -nE 's/^\s*([^ ]+) => ([^ ]+).*/\1 \2/p' |
            grep -vE "$bundle|^(libc|libm|libpthread|libdl|librt|libresolv|libutil)\.so|^lib(cu|nv|nccl)" || true)
  [ -z "$foreign" ] || fail "${program##*/} needs $foreign"
done

clean=(env -i PATH=/usr/bin:/bin HOME="$work")
# says_version COUNT COMMAND...: with so many lines; all of them are read, since mpirun fails where nobody reads on.
says_version() {
  local said
  said=$("${@:2}") && [ "$(grep -c '^transxssm ' <<<"$said")" = "$1" ] || fail "exit code $? of ${*:2}, which said: $said"
}
says_version 1 "${clean[@]}" "$bundle/run" --version
says_version 2 "${clean[@]}" "$bundle/run" mpirun -n 2 transxssm --version
# With the C library that was packed, as on an older system: getconf is not there to tell.
mkdir "$work/bin"
for tool in sh dirname cut sort head id; do ln -s "$(command -v $tool)" "$work/bin/$tool"; done
says_version 2 env -i PATH="$work/bin" HOME="$work" "$bundle/run" mpirun -n 2 transxssm --version
if "$1"/launch/bundle.sh --build "$2" -o "$work/bundle.zip" 2>"$work/error"; then fail "a name that it cannot pack"; fi
grep -q 'must end in' "$work/error" || fail "no reason for refusing a name"
if [ ! -x "$2/test_kernels_gpu" ]; then
  if "$1"/launch/bundle.sh --build "$2" --gpu-tests -o "$work/gpu.tar.gz" 2>"$work/error"; then fail "GPU tests that are not built"; fi
  grep -q 'preset cuda' "$work/error" || fail "no reason for refusing GPU tests"
fi
echo "bundle_test: passed"
