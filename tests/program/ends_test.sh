#!/usr/bin/env bash
# How a run ends, and what it leaves: signals, readers that go away, streams that are closed or full.
# shellcheck source=tests/program/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A run that goes on until it is told to end, with a line every step.
# `set -m` gives its jobs a process group of their own, and lets them hear Ctrl-C.
long_run() { set -m && tokens && config run.textproto 100000000 && sed -i 's/every_steps: 3/every_steps: 0/' run.textproto; }
steps_done() { if [ -e run/metrics.jsonl ]; then grep -c '"train/loss"' run/metrics.jsonl; else echo 0; fi; }
# await WHAT COMMAND...: until the command succeeds, a minute at most.
await() {
  local what=$1 _
  shift
  for _ in $(seq 600); do
    "$@" && return 0
    sleep 0.1
  done
  wrong "not within a minute: $what"
  return 1
}
has_steps() { [ "$(steps_done)" -ge "$1" ]; }
is_gone() { ! kill -0 "$1" 2>/dev/null; }
handles_signals() { grep -q '^SigCgt:.*[2367abef]..$' "/proc/$1/status"; }  # SIGUSR1, the tenth bit
# The job in the background ends by itself; its exit code goes to `status`.
finish() {
  await "the end of the run" is_gone "$1" || kill -KILL "$1"
  status=0
  wait "$1" || status=$?
}
expect_saved() { compgen -G 'run/checkpoints/step-*/COMMIT' >/dev/null || wrong "no checkpoint: $(tail -n 5 "$output" 2>/dev/null)"; }

# The terminal sends SIGINT to every process of the pipeline, so that tee ends at once.
case_ctrl_c_through_tee() {
  long_run || return
  (
    trap : INT
    "$program" train --config run.textproto
    echo $? >code
  ) 2>&1 | tee "$output" >/dev/null &
  local job=$!
  await "steps" has_steps 3
  kill -INT -- "-$(ps -o pgid= -p $job | tr -d ' ')"
  await "an exit code" test -s code
  [ "$(cat code)" = 75 ] || wrong "exit code $(cat code)"
  expect_saved
}

case_reader_goes_away() {
  long_run || return
  "$program" train --config run.textproto > >(head -n 1 >/dev/null) 2>&1 &
  local job=$! before
  await "steps" has_steps 3
  before=$(steps_done)
  await "more steps" has_steps $((before + 5))
  kill -HUP $job  # as a terminal that is closed
  finish $job
  expect 75
  expect_saved
  grep -q "SIGHUP on rank 0: saving step" run/log/rank-0.txt || wrong "the log file does not tell of the save"
}

case_nohup() {
  long_run || return
  (trap '' HUP; exec "$program" train --config run.textproto >"$output" 2>&1) &
  local job=$! before
  await "steps" has_steps 3
  kill -HUP $job
  before=$(steps_done)
  await "more steps" has_steps $((before + 5))
  kill -TERM $job
  finish $job
  expect 75 "SIGTERM on rank 0: saving"
}

# Slurm sends USR1, then TERM while the save is under way.
case_second_signal() {
  long_run || return
  "$program" train --config run.textproto >"$output" 2>&1 &
  local job=$!
  await "steps" has_steps 3
  kill -USR1 $job
  while kill -TERM $job 2>/dev/null && kill -HUP $job 2>/dev/null && kill -USR1 $job 2>/dev/null; do sleep 0.01; done
  finish $job
  expect 75 "on rank 0: saving"  # the kernel may hand on several signals in another order
  expect_saved
}

case_signal_while_starting() {
  long_run || return
  "$program" train --config run.textproto >"$output" 2>&1 &
  local job=$!
  await "handlers" handles_signals $job
  kill -TERM $job
  finish $job
  expect 75 "saved"
  expect_saved
  run "$program" train --config run.textproto --set schedule.steps=4
  expect 0 "resuming from"
}

case_closed_streams() {
  tokens && config run.textproto 3 || return
  status=0
  "$program" train --config run.textproto <&- >&- 2>&- || status=$?
  expect 0
  run "$program" checkpoint verify run
  expect 0
  [ "$(head -c 1 run/metrics.jsonl)" = "{" ] || wrong "metrics.jsonl begins with $(head -n 1 run/metrics.jsonl)"
  "$program" data tokenize --input docs.jsonl --field text --append-eod --tokenizer tok.json --threads 1 \
    --output again <&- >&- 2>&- # what it did is all that counts here
  if ! cmp train.bin again.bin || ! cmp train.idx again.idx; then wrong "other token files with closed streams"; fi
  status=0
  "$program" data inspect train >&- 2>"$output" || status=$?
  expect 9 "standard output"
}

case_full_output() {
  tokens && config run.textproto 3 || return
  run "$program" train --config run.textproto
  expect 0
  local command
  while read -r command; do
    status=0
    # shellcheck disable=SC2086  # words
    "$program" $command >/dev/full 2>"$output" || status=$?
    expect 9 "standard output cannot be written: No space left on device"
    # shellcheck disable=SC2086
    "$program" $command 2>"$output" | true
    status=${PIPESTATUS[0]}
    [ "$status" = 141 ] || [ "$status" = 0 ] || wrong "$command: exit code $status when its reader went"
    expect_not "error"
  done <<'COMMANDS'
--help
--version
train --help
completion bash
data inspect train
checkpoint ls run
checkpoint inspect run
checkpoint verify run
train --config run.textproto --dry-run
generate --checkpoint run --prompt Entry --max-tokens 4
COMMANDS
  # More than a pipe holds: the reader is gone before the end.
  "$program" checkpoint inspect run --tensors --config 2>"$output" | head -c 1 >/dev/null
  run "$program" data inspect train
  expect 0
  status=0
  "$root/launch/run.sh" -n 1 --program "$program" -- data inspect train >/dev/full 2>"$output" || status=$?
  expect 9 "standard output"
}

# A log that cannot grow costs one warning, and no step.
case_full_log() {
  tokens && config run.textproto 6 || return
  mkdir -p run/log
  ln -s /dev/full run/log/rank-0.txt
  ln -s /dev/full run/metrics.jsonl
  run "$program" train --config run.textproto
  expect 0 "metrics are lost" "lines are lost"
  [ "$(grep -c "metrics are lost" "$output")" = 1 ] || wrong "several warnings of the metrics"
  [ "$(grep -c "lines are lost" "$output")" = 1 ] || wrong "several warnings of the log"
}

case_ranks_without_reader() {
  long_run || return
  "$root/launch/run.sh" -n 2 --program "$program" -- train --config run.textproto --set parallel.tp=2 \
    > >(head -n 1 >/dev/null) 2>&1 &
  local job=$! before
  await "steps" has_steps 3
  before=$(steps_done)
  await "more steps" has_steps $((before + 5))
  kill -INT $job
  sleep 0.2
  kill -TERM $job
  finish $job
  expect 75
  expect_saved
}

# Every rank finds that the seed is another one.
case_one_warning() {
  tokens && config run.textproto 3 || return
  run "$root/launch/run.sh" -n 4 --program "$program" -- train --config run.textproto
  expect 0 "4 ranks on host $(uname -n)"
  run "$root/launch/run.sh" -n 4 --program "$program" -- train --config run.textproto --set seed=7 --set schedule.steps=5
  expect 0 "seed"
  [ "$(grep -c "warning:" "$output")" = 1 ] || wrong "not one warning: $(grep "warning:" "$output")"
}

# Ranks that fail together give one report, which names hosts; the log folder keeps it.
case_one_report() {
  tokens && config run.textproto 1000000 && sed -i 's/global_batch: 4/& timeout_seconds: 3/' run.textproto || return
  run "$root/launch/run.sh" -n 4 --program "$program" -- train --config run.textproto --set model.vocab_size=280 \
    --set data.tokenizer=
  expect 3 "280" "on $(uname -n), exit code 3"
  [ "$(grep -c "error:" "$output")" = 1 ] || wrong "several reports: $(grep "error:" "$output")"
  rm -rf run
  "$root/launch/run.sh" -n 4 --program "$program" -- train --config run.textproto >"$output" 2>&1 &
  local job=$! rank
  await "steps" has_steps 3
  rank=$(pgrep -f "^$program train --config run.textproto" | while read -r pid; do
    [ "$(readlink "/proc/$pid/cwd")" = "$PWD" ] && tr '\0' '\n' <"/proc/$pid/environ" |
      grep -qx OMPI_COMM_WORLD_RANK=2 && echo "$pid" && break
  done)
  kill -STOP "$rank"
  await "a report" grep -q "exit code 7" "$output"
  kill -CONT "$rank" 2>/dev/null
  finish $job
  expect 7 "verdict: rank 2"
  [ "$(grep -c "what every rank did last" "$output")" = 1 ] || wrong "several tables"
  [ "$(grep -c "exit code 7" "$output")" = 1 ] || wrong "several errors: $(grep "exit code 7" "$output")"
  grep -q "verdict: rank 2" run/log/failure.txt || wrong "no report in the log folder"
}

# What an option names is written only where it destroys nothing, and that is known before the work.
case_outputs() {
  tokens && config run.textproto 4 || return
  cp train.bin before.bin
  echo mine >notes
  local file
  for file in train.bin tok.json run.textproto notes no/such/trace.json; do
    run "$program" train --config run.textproto --trace "$file"
    expect 2 "$file"
    run "$program" train --config run.textproto --stop-file "$file"
    expect 2 "$file"
    [ ! -e run ] || { wrong "the work began before $file was refused"; rm -rf run; }
  done
  if ! cmp -s train.bin before.bin || [ "$(cat notes)" != mine ]; then wrong "a file was replaced"; fi
  run "$program" train --config run.textproto --trace train.bin --overwrite
  expect 2 "train.bin is read by this command"
  run "$program" train --config run.textproto --trace trace.json
  expect 0 "trace"
  run "$program" train --config run.textproto --set schedule.steps=8 --trace trace.json  # its own it replaces
  expect 0 "trace"
  run "$program" bench kernels --json notes
  expect 2 "notes" "--overwrite"
  run "$program" bench train --trace no/such.json
  expect 2 "no/such.json"
  run "$program" bench length --plot train.bin
  expect 2 "train.bin"
}

# slurm.sbatch with a scheduler of ours. srun's ranks: saved and killed, saved, failed, done.
case_slurm() {
  mkdir bin
  cat >bin/srun <<'SRUN'
#!/bin/bash
while [ $# -gt 1 ]; do [ "$1" != --stop-file ] || saved=$2; shift; done
read -r step code <<<"$(sed -n 1p plan)"
sed -i 1d plan
[ "$step" = none ] || echo "step $step" >"$saved"
exit "$code"
SRUN
  printf '#!/bin/bash\necho requeued "$@" >>requeued\n' >bin/scontrol
  chmod +x bin/*
  submit() {  # step that was saved, srun's exit code, the script's, requeues so far
    echo "$1 $2" >plan
    status=0
    env PATH="$PWD/bin:$PATH" SLURM_JOB_ID=17 SLURM_NTASKS=2 SLURM_JOB_NODELIST=n SLURM_SUBMIT_DIR="$PWD" TRANSXSSM="$program" \
      bash "$root/launch/slurm.sbatch" --config c >"$output" 2>&1 || status=$?
    [ "$status" = "$3" ] || wrong "saved $1, srun's code $2: exit code $status instead of $3: $(cat "$output")"
    [ "$(grep -sc requeue requeued)" = "$4" ] || wrong "saved $1, srun's code $2: requeued $(grep -sc requeue requeued) times"
  }
  submit 10 75 75 1
  submit 20 137 75 2    # a rank was killed while it ended
  submit 30 143 75 3
  submit none 137 137 3 # killed before the save
  submit none 6 6 3
  submit 40 75 75 4
  submit 40 75 75 5
  submit 40 143 2 5     # gets nowhere
  submit 40 75 75 6
  submit 50 75 75 7
  submit none 0 0 7
  [ -z "$(compgen -G 'slurm-17.*')" ] || wrong "left behind: $(compgen -G 'slurm-17.*')"
}

run_cases "$@"
