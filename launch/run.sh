#!/usr/bin/env bash
# mpirun as a person wants it. Ctrl-C and SIGTERM make the ranks save and exit 75 (mpirun by itself kills them); a
# second one ends at once. The exit code is the job's.
set -uo pipefail

usage() {
  cat <<'EOF'
Usage: launch/run.sh -n RANKS [--program FILE] [mpirun options] -- COMMAND [arguments]
  launch/run.sh -n 4 -- train --config launch/configs/tiny.textproto --set parallel.tp=2 --set parallel.pp=2
  launch/run.sh -n 16 --hostfile hosts -- train --config my.textproto --resume auto
--program is another program than build/transxssm. Signals to this script: INT, TERM, HUP and USR1 save and exit 75,
USR2 saves and goes on.
EOF
}
fail() { echo "run.sh: $1" >&2; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
self=$0
ranks=
program=
options=()
own_hosts=false
while [ $# -gt 0 ]; do
  case $1 in
    --) shift; break ;;
    -n | -np | --np) ranks=${2-}; shift 2 || fail "$1 needs a number of ranks" ;;
    --program) program=${2-}; shift 2 || fail "--program needs a file" ;;
    --help | -h) usage; exit 0 ;;
    --host | -host | -H | --hostfile | -hostfile | -machinefile | --machinefile) own_hosts=true; options+=("$1"); shift ;;
    *) options+=("$1"); shift ;;
  esac
done
[[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "-n RANKS is missing or no whole number; see launch/run.sh --help"
[ $# -gt 0 ] || [ -n "$program" ] || fail "no command after --; for example: launch/run.sh -n $ranks -- train --config FILE"
if [ -z "$program" ]; then
  program=$root/build/transxssm
  [ -x "$program" ] || program=$(command -v transxssm) || fail "build/transxssm is not built; run: cmake --preset cpu && cmake --build --preset cpu"
fi
[ -x "$program" ] || program=$(command -v "$program") || fail "$program is no program that can be run"
command -v mpirun >/dev/null || fail "mpirun is missing; run launch/install-deps.sh"
case $(mpirun --version 2>/dev/null) in
  *"Open MPI"*) ;;
  *) fail "$(command -v mpirun) is not Open MPI's; put Open MPI's mpirun first in PATH" ;;
esac

# Binding: by default mpirun ties every rank of a small job to one core, which halves its threads' speed; the program
# places its threads itself. Inherited OpenMP placement would undo that.
unset OMP_PROC_BIND OMP_PLACES GOMP_CPU_AFFINITY
mpirun_options=(-n "$ranks" --bind-to none)
if ! $own_hosts; then
  cores=$(lscpu -p=CORE,SOCKET 2>/dev/null | grep -v '^#' | sort -u | wc -l)
  [ "$ranks" -le "$cores" ] || mpirun_options+=(--oversubscribe)
  # More ranks than cores: what waits leaves the core to a rank that works, within MPI and in a rank's threads.
  if [ "$ranks" -gt "$(nproc)" ]; then
    mpirun_options+=(--mca mpi_yield_when_idle 1)
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
  fi
fi
[ "$(id -u)" != 0 ] || mpirun_options+=(--allow-run-as-root)
# Containers forbid the system call behind single-copy messages between processes.
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
export OMPI_MCA_btl_base_warn_component_unused=${OMPI_MCA_btl_base_warn_component_unused:-0}

# A session of its own keeps the terminal's Ctrl-C from mpirun; should this script be killed outright, mpirun is told
# to end.
guard=()
if command -v setpriv >/dev/null && setpriv --pdeathsig TERM true 2>/dev/null; then guard=(setpriv --pdeathsig TERM); fi
job=
stops=0
interrupted=false
# shellcheck disable=SC2317  # called by the traps
forward() {  # signal, the signal that the job gets
  interrupted=true
  [ -n "$job" ] || exit 130
  if [ "$2" = USR1 ]; then
    stops=$((stops + 1))
    if [ "$stops" -gt 1 ]; then
      echo "run.sh: second signal: ending at once" >&2
      kill -TERM "$job" 2>/dev/null
      return
    fi
    echo "run.sh: $1: saving, then exit 75; once more ends at once" >&2
  fi
  kill -"$2" "$job" 2>/dev/null
}
for signal in INT TERM HUP USR1; do
  # shellcheck disable=SC2064  # the signal's name is meant now
  trap "forward $signal USR1" "$signal"
done
trap 'forward USR2 USR2' USR2

setsid "${guard[@]}" mpirun "${mpirun_options[@]}" "${options[@]}" "$program" "$@" </dev/null &
job=$!
while :; do  # a trapped signal ends wait before the job ends
  interrupted=false
  wait "$job"
  status=$?
  $interrupted || break
done

exit "$status"
