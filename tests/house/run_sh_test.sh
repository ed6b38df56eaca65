#!/usr/bin/env bash
# launch/run.sh under each signal, with a shell in place of the program. Argument: the source tree.
set -u
run=$1/launch/run.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
expect() {  # what, got, wanted
  [ "$2" = "$3" ] || { echo "FAILED: $1: got '$2', wanted '$3'"; failures=$((failures + 1)); }
}
# Waits until N lines of the job's output say what is wanted.
await() {
  for _ in $(seq 200); do
    [ "$(grep -c "$1" "$work/out")" -lt "$2" ] || return 0
    sleep 0.05
  done
  echo "FAILED: no '$1' from $2 ranks within 10 s"
  failures=$((failures + 1))
}

"$run" -n 2 --program /bin/sh -- -c 'exit 0'
expect "exit code of a good job" $? 0
"$run" -n 2 --program /bin/sh -- -c 'exit 4' 2>/dev/null
expect "exit code of a failed job" $? 4
"$run" -n 0 -- train 2>/dev/null
expect "exit code of a wrong number of ranks" $? 2
"$run" -n 2 -- 2>/dev/null
expect "exit code without a command" $? 2

# A program that saves on USR1 and leaves when all ranks have (mpirun ends the others as soon as one exits with 75);
# and one that does not listen.
cat >"$work/saves" <<'EOF'
save() { echo saved; : >"$1/$OMPI_COMM_WORLD_RANK"; while [ "$(ls "$1" | wc -l)" -lt 3 ]; do sleep 0.05; done; exit 75; }
trap 'save "$1"' USR1
trap 'echo saved-and-on' USR2
echo ready
i=0; while [ $i -lt 300 ]; do sleep 0.1; i=$((i + 1)); done
exit 9
EOF
cat >"$work/deaf" <<'EOF'
trap '' USR1
echo ready
i=0; while [ $i -lt 300 ]; do sleep 0.1; i=$((i + 1)); done
exit 9
EOF
set -m  # jobs of their own: else the shell hands INT to them as ignored
for signal in INT TERM HUP USR1; do
  mkdir "$work/$signal"
  : >"$work/out"  # not the last job's
  "$run" -n 3 --program /bin/sh -- "$work/saves" "$work/$signal" >"$work/out" 2>/dev/null &
  job=$!
  await ready 3
  kill -USR2 $job
  await saved-and-on 3
  kill -$signal $job
  wait $job
  expect "exit code after $signal" $? 75
  expect "ranks that saved after $signal" "$(grep -c '^saved$' "$work/out")" 3
done

# Only the third Ctrl-C, each a second after the one before, ends a job that does not listen.
: >"$work/out"
"$run" -n 2 --program /bin/sh -- "$work/deaf" >"$work/out" 2>"$work/said" &
job=$!
await ready 2
kill -INT $job
for signal in TERM USR1 HUP INT INT; do sleep 0.05; kill -$signal $job; done
sleep 1.2
kill -INT $job
sleep 1.2
kill -0 $job 2>/dev/null || expect "the job after a scheduler's signals and a second Ctrl-C" "gone" "there"
grep -q "once more ends at once" "$work/said" || expect "word of the third Ctrl-C" "$(cat "$work/said")" "once more ends at once"
SECONDS=0
kill -INT $job
wait $job
status=$?
case $status in 0 | 9 | 75) expect "exit code after a third Ctrl-C" $status "another" ;; esac
[ $SECONDS -le 15 ] || expect "seconds after a third Ctrl-C" $SECONDS "at most 15"

# A reader that goes away costs nothing: the job ends as it would. What is lost of standard output is an error.
cat >"$work/talks" <<'EOF'
trap '' PIPE
i=0; while [ $i -lt 30 ]; do echo "line $i"; echo "line $i" >&2; sleep 0.05; i=$((i + 1)); done
echo end >"$1/$OMPI_COMM_WORLD_RANK"
exit $2
EOF
for code in 0 4; do
  mkdir "$work/ends$code"
  "$run" -n 2 --program /bin/sh -- "$work/talks" "$work/ends$code" $code 2>&1 > >(head -n 1 >/dev/null) | head -n 1 >/dev/null
  status=${PIPESTATUS[0]}
  case $code in 0) wanted=141 ;; *) wanted=$code ;; esac
  expect "exit code $code without a reader" "$status" $wanted
done
expect "ranks that went on without a reader" "$(find "$work/ends0" -type f | wc -l)" 2
"$run" -n 1 --program /bin/echo -- text >/dev/full 2>"$work/said"
expect "exit code with a full output" $? 9
grep -q "standard output cannot be written" "$work/said" || expect "word of the full output" "$(cat "$work/said")" "a sentence"
"$run" -n 1 --program /bin/echo -- text >&- 2>/dev/null
expect "exit code with a closed output" $? 9
"$run" -n 1 --program /bin/sh -- -c 'echo text; echo word >&2' >"$work/out" 2>&-
expect "exit code with a closed standard error" $? 0
expect "standard output" "$(cat "$work/out")" "text"

[ $failures = 0 ] && echo "run.sh: all as documented"
exit $((failures > 0))
