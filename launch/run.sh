#!/usr/bin/env bash
# mpirun as a person wants it. Ctrl-C, SIGTERM and a closed terminal make the ranks save and exit 75 (mpirun by itself
# kills them), and no further signal interrupts that, but for a third Ctrl-C. A reader of the output that goes away
# (mpirun by itself crashes) costs nothing. The exit code is the job's.
set -uo pipefail

usage() {
  cat <<'EOF'
Usage: launch/run.sh -n RANKS [--program FILE] [mpirun options] -- COMMAND [arguments]
  launch/run.sh -n 4 -- train --config launch/configs/tiny.textproto --set parallel.tp=2 --set parallel.pp=2
  launch/run.sh -n 16 --hostfile hosts -- train --config my.textproto --resume auto
--program is another program than build/transxssm. Signals to this script: INT, TERM, HUP and USR1 save and exit 75,
USR2 saves and goes on. While a save is under way further signals change nothing, but for Ctrl-C: the third, each at
least a second after the one before, ends at once without a save. Under nohup HUP is ignored. Commands other than
train save nothing: the first signal ends them.
EOF
}
fail() { echo "run.sh: $1" >&2; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
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

# mpirun does not survive the reader of its output: these children read it, hand it on while somebody takes it, and read
# on when nobody does. Their exit code says what became of it: 141 the reader went away, 9 it could not be written.
relay() {
  trap '' INT TERM HUP USR1 USR2
  local complaint out
  exec {out}>&1
  complaint=$(LC_ALL=C cat 2>&1 >&"$out") && exit 0
  cat >/dev/null
  case $complaint in *"Broken pipe"*) exit 141 ;; *) exit 9 ;; esac
}
trap '' PIPE  # for mpirun and the ranks too
# Streams that are closed: what is printed there is lost, and of standard output that is an error.
[ -e /dev/fd/2 ] || exec 2>/dev/null
[ -e /dev/fd/1 ] || exec >/dev/full
# A session of its own keeps the terminal's Ctrl-C from mpirun; should this script be killed outright, mpirun is told to
# let the ranks save and end.
guard=()
if command -v setpriv >/dev/null && setpriv --pdeathsig USR1 true 2>/dev/null; then guard=(setpriv --pdeathsig USR1); fi
job=
stopping=false
interrupts=0
last_interrupt=0
interrupted=false
say() { echo "run.sh: $1" >&2 || :; }
# One keystroke may come by several ways: what follows within a second is the same one.
# shellcheck disable=SC2317  # called by the traps
interrupt() {
  local now=${EPOCHREALTIME/[.,]/}
  [ "$interrupts" = 0 ] || [ $((now - last_interrupt)) -ge 1000000 ] || return
  last_interrupt=$now
  interrupts=$((interrupts + 1))
  case $interrupts in
    1) ! $stopping || say "saving already" ;;
    2) say "still saving; Ctrl-C once more ends at once, without a save" ;;
    3) say "ending at once"; kill -TERM "$job" 2>/dev/null ;;
  esac
}
# shellcheck disable=SC2317
forward() {  # signal, the signal that the job gets
  interrupted=true
  [ -n "$job" ] || exit $((128 + $(kill -l "$1")))
  [ "$1" != INT ] || interrupt
  if [ "$2" = USR1 ]; then
    if $stopping; then return; fi
    stopping=true
    say "$1: saving, then exit 75"
  fi
  kill -"$2" "$job" 2>/dev/null
}
for signal in INT TERM HUP USR1; do
  # shellcheck disable=SC2064  # the signal's name is meant now
  trap "forward $signal USR1" "$signal"
done
trap 'forward USR2 USR2' USR2

exec {to_error}> >(relay >&2)
exec {to_output}> >(relay)
output=$!
setsid "${guard[@]}" mpirun "${mpirun_options[@]}" "${options[@]}" "$program" "$@" </dev/null >&"$to_output" 2>&"$to_error" \
  {to_output}>&- {to_error}>&- &
job=$!
exec {to_output}>&- {to_error}>&-
# A trapped signal ends wait before the job ends.
await() {
  local code
  while :; do
    interrupted=false
    wait "$1" 2>/dev/null  # no line of the shell's on a signal that ended it
    code=$?
    $interrupted || return $code
  done
}
await "$job"
status=$?
# A rank that gave up has ended mpirun, which waited for a host that is lost (parallel/deadline.h).
[ $status != 157 ] || status=7
await "$output"
lost=$?
if [ $status = 0 ] && { [ $lost = 141 ] || [ $lost = 9 ]; }; then
  [ $lost = 141 ] || say "standard output cannot be written; what is missing there is lost"
  status=$lost
fi
exit "$status"
