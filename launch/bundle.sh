#!/usr/bin/env bash
# Packs the program with every library it needs, Open MPI's included, into one file of at most 60 MB that runs on a
# machine with nothing but Linux, and for GPUs the driver and the CUDA libraries (cuBLAS, cuDNN, NCCL).
set -euo pipefail

usage() {
  cat <<'EOF_USAGE'
Usage: launch/bundle.sh [--build DIR] [--gpu-tests] [--add FILE]... [-o FILE]
  --build DIR  where transxssm was built (build-cuda, else build)
  --gpu-tests  also tests/gpu.sh, the test programs it runs, and a text to train on from the package dict-gcide
  --add FILE   another program or file to pack; repeatable
  -o FILE      the bundle (transxssm-bundle.tar.zst); .tar.xz and .tar.gz are packed as their names say
On the other machine:
  tar -xf transxssm-bundle.tar.zst && transxssm-bundle/run --version
  transxssm-bundle/run mpirun -n 2 transxssm selfcheck
  transxssm-bundle/gpu.sh --out report
EOF_USAGE
}
fail() { echo "bundle.sh: $1" >&2; exit "${2:-1}"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=
out=transxssm-bundle.tar.zst
added=()
gpu_tests=false
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=${2-}; shift 2 || fail "--build needs a directory" 2 ;;
    --gpu-tests) gpu_tests=true; shift ;;
    --add) added+=("${2-}"); shift 2 || fail "--add needs a file" 2 ;;
    -o) out=${2-}; shift 2 || fail "-o needs a file" 2 ;;
    --help | -h) usage; exit 0 ;;
    *) usage >&2; fail "unknown option $1" 2 ;;
  esac
done
if [ -z "$build" ]; then
  build=$root/build-cuda
  [ -x "$build/transxssm" ] || build=$root/build
fi
[ -x "$build/transxssm" ] || fail "$build/transxssm is not built; run: cmake --preset cuda && cmake --build --preset cuda"
if $gpu_tests; then
  for program in test_cuda_gpu test_kernels_gpu test_nccl_gpu test_training_gpu; do
    [ -x "$build/$program" ] || fail "$build/$program is not built: --gpu-tests needs a build of the preset cuda"
    added+=("$build/$program")
  done
  added+=("$root/tests/gpu.sh")
fi
for file in ${added[@]+"${added[@]}"}; do [ -f "$file" ] || fail "--add $file: there is no such file" 2; done
case $out in
  *.tar.zst) packer="zstd -q -19 -T0" ;;
  *.tar.xz) packer="xz -6 -T0" ;;
  *.tar.gz) packer="gzip -9" ;;
  *) fail "-o $out: the name must end in .tar.zst, .tar.xz or .tar.gz" 2 ;;
esac
command -v "${packer%% *}" >/dev/null || fail "${packer%% *} is missing; install it or choose another ending"
mpirun=$(readlink -f "$(command -v mpirun)") || fail "mpirun is missing; run launch/install-deps.sh"
command -v ompi_info >/dev/null || fail "ompi_info is missing: the bundle needs Open MPI's mpirun, see launch/install-deps.sh"
where() { ompi_info --parsable --path "$1" | sed -n "s/^path:$1://p" | head -1; }
plugins=$(where pkglibdir)
mpi_data=$(where pkgdatadir)

# Of the C library, which the target has; used only where the target's is older.
is_glibc() { case $1 in ld-linux* | libc.so* | libm.so* | libpthread.so* | libdl.so* | librt.so* | libresolv.so* | libutil.so*) ;; *) false ;; esac; }
# Of the driver and the CUDA toolkit, which a machine with a GPU has.
is_cuda() { case $1 in libcuda.so* | libnvidia-* | libcudart* | libcublas* | libcudnn* | libnccl* | libnvrtc* | libnvJitLink*) ;; *) false ;; esac; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/transxssm-bundle
mkdir -p "$bundle"/{programs,lib/glibc,openmpi/plugins,openmpi/share,pmix,configs}

# Programs, and plugins but for those of interconnects whose libraries are large: ranks talk by shared memory and TCP,
# and GPUs by NCCL.
cp "$build/transxssm" "$bundle/programs/"
cp "$mpirun" "$bundle/programs/mpirun"
cp "$(readlink -f "$(command -v orted)")" "$bundle/programs/orted"
files=()
for file in ${added[@]+"${added[@]}"}; do
  if [ "$(head -c 4 "$file" | tail -c 3)" = ELF ]; then cp "$file" "$bundle/programs/"; else files+=("$file"); fi
done
[ ${#files[@]} = 0 ] || cp -t "$bundle" "${files[@]}"
# Enough for the 200 steps of gpu.sh.
if $gpu_tests && [ -f /usr/share/dictd/gcide.dict.dz ]; then
  mkdir "$bundle/text"
  { zcat </usr/share/dictd/gcide.dict.dz || true; } 2>/dev/null | head -c 6000000 | tr -cd '\11\12\40-\176' >"$bundle/text/gcide.txt"
fi
for plugin in "$plugins"/*.so; do
  case ${plugin##*/} in *ucx* | *ofi* | *psm* | *openib* | *usnic* | *portals* | *verbs* | *monitoring*) continue ;; esac
  cp "$plugin" "$bundle/openmpi/plugins/"
done
cp -r "$mpi_data"/. "$bundle/openmpi/share/"
cp "$root"/launch/configs/* "$bundle/configs/"
pmix_library=$(ldd "$(find "$plugins" -name 'mca_pmix_ext*' | head -1)" 2>/dev/null | sed -n 's/.*libpmix[^ ]* => \([^ ]*\).*/\1/p' | head -1)
if [ -n "$pmix_library" ]; then
  for folder in "$(dirname "$(readlink -f "$pmix_library")")"/pmix "$(dirname "$pmix_library")"/pmix; do
    [ ! -d "$folder" ] || { cp -L "$folder"/*.so "$bundle/pmix/"; break; }
  done
fi

# What all of these need, and what that needs.
missing=0
while read -r name path; do
  if is_cuda "$name"; then continue; fi
  if [ "$path" = not ]; then echo "bundle.sh: $name is not found" >&2; missing=1; continue; fi
  if is_glibc "$name"; then cp -Ln "$path" "$bundle/lib/glibc/$name"; else cp -Ln "$path" "$bundle/lib/$name"; fi
done < <(find "$bundle/programs" "$bundle/openmpi/plugins" "$bundle/pmix" -type f -print0 | xargs -0 -n 1 ldd 2>/dev/null |
         sed -nE 's/^\s*([^ ]+) => (not|[^ ]+).*/\1 \2/p' | sort -u)
[ $missing = 0 ] || fail "the program is linked to libraries that are not on this machine"
loader=$(sed -nE 's/.*\[Requesting program interpreter: (.*)\]/\1/p; s/.*interpreter ([^,]+),.*/\1/p' \
         < <(readelf -l "$bundle/programs/transxssm" 2>/dev/null) | head -1)
cp -L "$loader" "$bundle/lib/glibc/loader"
find "$bundle/programs" "$bundle/lib" "$bundle/openmpi/plugins" "$bundle/pmix" -type f ! -path '*/glibc/*' \
  -exec strip --strip-unneeded {} + 2>/dev/null || true
glibc=$(ldd --version | sed -nE '1s/.* ([0-9]+\.[0-9]+)$/\1/p')

cat > "$bundle/run" <<EOF_RUN
#!/bin/sh
# transxssm and Open MPI's mpirun from this folder, wherever it lies: ./run train ..., ./run mpirun -n 2 transxssm train ...
built_with=$glibc
EOF_RUN
cat >> "$bundle/run" <<'EOF_RUN'
here=$(cd "$(dirname "$0")" && pwd)
here=${here%/bin}
export OPAL_PREFIX="$here/openmpi" OPAL_BINDIR="$here/bin" OPAL_LIBDIR="$here/lib" OPAL_PKGLIBDIR="$here/openmpi/plugins"
export OPAL_DATADIR="$here/openmpi" OPAL_PKGDATADIR="$here/openmpi/share" OPAL_SYSCONFDIR="$here/openmpi"
export PMIX_INSTALL_PREFIX="$here" PMIX_LIBDIR="$here/lib" PMIX_PKGLIBDIR="$here/pmix"
# Containers forbid the system call behind single-copy messages between processes.
export OMPI_MCA_btl_vader_single_copy_mechanism="${OMPI_MCA_btl_vader_single_copy_mechanism:-none}"
export OMPI_MCA_hwloc_base_binding_policy="${OMPI_MCA_hwloc_base_binding_policy:-none}"
export OMPI_MCA_rmaps_base_oversubscribe="${OMPI_MCA_rmaps_base_oversubscribe:-1}"
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
# Ranks of one machine need no remote shell.
command -v ssh >/dev/null || command -v rsh >/dev/null || export OMPI_MCA_plm="${OMPI_MCA_plm:-isolated}"
libraries=$here/lib
for folder in /usr/local/cuda/lib64 /usr/local/nvidia/lib64 /usr/local/nvidia/lib; do
  [ ! -d "$folder" ] || libraries=$libraries:$folder
done
case ":${LD_LIBRARY_PATH-}:" in *":$libraries:"*) ;; *) export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" ;; esac
case ":$PATH:" in *":$here/bin:"*) ;; *) export PATH="$here/bin:$PATH" ;; esac
program=${0##*/}
if [ "$program" = run ]; then
  program=transxssm
  if [ $# -gt 0 ] && [ -f "$here/programs/$1" ]; then program=$1; shift; fi
fi
# An older C library than the one this was built with: then that one goes along.
has=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2)
if [ "$(printf '%s\n%s\n' "$built_with" "${has:-0}" | sort -V | head -n 1)" = "$built_with" ]; then
  exec "$here/programs/$program" "$@"
fi
exec "$here/lib/glibc/loader" --library-path "$here/lib/glibc:$LD_LIBRARY_PATH" "$here/programs/$program" "$@"
EOF_RUN
chmod +x "$bundle/run"
mkdir "$bundle/bin"
for program in "$bundle"/programs/*; do ln -s ../run "$bundle/bin/${program##*/}"; done

tar -C "$work" --sort=name --owner=0 --group=0 --mtime=@0 -cf - transxssm-bundle | $packer > "$out"
size=$(stat -c %s "$out")
echo "$out: $(( (size + 999999) / 1000000 )) MB, $(find "$bundle/programs" -type f | wc -l) programs, $(find "$bundle/lib" -type f | wc -l) libraries"
[ "$size" -le 60000000 ] || fail "$out is larger than 60 MB; pack less with --add, or choose .tar.xz"
