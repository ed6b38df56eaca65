#!/usr/bin/env bash
# The program as a user meets it when things go wrong: a rank is killed or stopped in mid-step, a signal arrives, a
# checkpoint is damaged, data and configuration are bad. Every case checks the exit code and what the user is told.
#   whole_program_test.sh PROGRAM [CASE...]
set -uo pipefail
set -m  # without job control a background job ignores Ctrl-C

program=$(realpath "$1")
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
# Waits for the background job; one that does not end is killed and fails.
wait_job() {
  local limit=$((SECONDS + 40))
  while kill -0 "$job" 2>/dev/null && [ $SECONDS -lt $limit ]; do sleep 0.1; done
  if kill -0 "$job" 2>/dev/null; then
    fail "the job did not end"
    pkill -KILL -f "train --config" -P "$(pgrep -d, -P "$job")" 2>/dev/null
    kill -KILL "$job"
  fi
  status=0
  wait "$job" || status=$?
  job=
}
job=
trap '[ -z "$job" ] || kill -KILL "$job" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0
fail() { echo "FAILED $case_name: $1" >&2; failures=$((failures + 1)); }
# expect CODE TEXT... : the last command's exit code, and words its output must hold.
expect() {
  local code=$1 text
  shift
  [ "$status" = "$code" ] || fail "exit code $status instead of $code; it printed: $(tail -n 15 output)"
  for text in "$@"; do grep -qF -- "$text" output || fail "'$text' is not in: $(tail -n 15 output)"; done
}
run() { status=0; "$@" >output 2>&1 || status=$?; }

make_data() {
  for i in $(seq 400); do
    echo "Entry $i. The word number $i follows $((i - 1)) and stands before $((i + 1)); it is $((i % 7)) by sevens."
  done >text
  "$program" data train-tokenizer --input text --vocab-size 300 --output tokenizer.json >/dev/null 2>&1 || return 1
  "$program" data tokenize --input text --tokenizer tokenizer.json --output tokens >/dev/null 2>&1
}
# config NAME STEPS: a small run of the given number of steps.
config() {
  cat >"$1.textproto" <<EOF
model { vocab_size: 300 d_model: 64 num_layers: 8 num_heads: 4 d_ff: 96 d_state: 16 chunk: 16 }
data { train { prefix: "tokens" } validation: "tokens" tokenizer: "tokenizer.json" sequence_length: 64 }
schedule { steps: $2 }
parallel { global_batch: 4 timeout_seconds: 5 }
checkpoint { every_steps: 5 }
log { run_directory: "$1" every_steps: 1 validation_every_steps: 0 validation_rows: 4 final_validation_rows: 4 }
EOF
}
launch() { "$root/launch/run.sh" -n "$1" --program "$program" -- train "${@:2}"; }
# The same in the background; `job` is the launcher itself, so that signals reach it.
start() {
  "$root/launch/run.sh" -n "$1" --program "$program" -- train "${@:2}" >output 2>&1 &
  job=$!
}
steps_done() { grep -c '"train/loss"' "$1/metrics.jsonl" 2>/dev/null || echo 0; }
# Waits until run $1 has done $2 steps.
wait_for_steps() {
  for _ in $(seq 600); do
    [ "$(steps_done "$1" | tail -n 1)" -lt "$2" ] || return 0
    sleep 0.05
  done
  fail "run $1 did not reach step $2: $(tail -n 15 output)"
}
pid_of_rank() { pgrep -f "train --config $1.textproto" | while read -r pid; do
  grep -qxz "OMPI_COMM_WORLD_RANK=$2" "/proc/$pid/environ" 2>/dev/null && echo "$pid" && break
done; }

killed_rank() {
  config killed 100000
  local begin
  start 4 --config killed.textproto --set parallel.tp=2 --set parallel.pp=2
  wait_for_steps killed 8
  kill -KILL "$(pid_of_rank killed 2)"
  begin=$SECONDS
  wait_job
  [ $status != 0 ] || fail "the launcher returned 0"
  [ $((SECONDS - begin)) -le 10 ] || fail "the job ended $((SECONDS - begin)) s after its rank"
  run "$program" checkpoint verify killed/checkpoints
  expect 0
  local before
  before=$(steps_done killed)
  run launch 2 --config killed.textproto --set parallel.dp=2 --set schedule.steps=$((before + 5))
  expect 0 "resuming from"
}

hanging_rank() {
  config hanging 100000
  local pid
  start 2 --config hanging.textproto --set parallel.tp=2
  wait_for_steps hanging 3
  pid=$(pid_of_rank hanging 1)
  kill -STOP "$pid"
  for _ in $(seq 300); do
    grep -q "verdict" output && break
    sleep 0.1
  done
  kill -CONT "$pid" 2>/dev/null
  wait_job
  expect 7 "verdict: rank 1" "is stopped"
}

signalled() {
  config signalled 100000
  local signal before
  for signal in TERM INT USR1; do
    before=$(steps_done signalled | tail -n 1)
    start 2 --config signalled.textproto --set parallel.pp=2 --set parallel.microbatch_size=1
    wait_for_steps signalled $((before + 3))
    kill -"$signal" $job
    wait_job
    expect 75 "saved" "--resume auto"
  done
  run "$program" checkpoint verify signalled/checkpoints
  expect 0
}

damaged_checkpoint() {
  config damaged 10
  run launch 1 --config damaged.textproto
  expect 0
  local newest shard
  newest=$(find damaged/checkpoints -maxdepth 1 -name 'step-*' | sort | tail -n 1)
  shard=$(find "$newest/shards" -name '*.safetensors' | head -n 1)
  printf 'x' | dd of="$shard" bs=1 seek=$(($(stat -c %s "$shard") - 100)) conv=notrunc 2>/dev/null
  run "$program" checkpoint verify "$newest"
  expect 4 "$(basename "$shard")"
  run launch 1 --config damaged.textproto --set schedule.steps=12
  expect 4 "$(basename "$shard")" "step 5" "checkpoint.fallback=previous"
  run launch 1 --config damaged.textproto --set schedule.steps=12 --set checkpoint.fallback=previous
  expect 2 "would jump" "schedule.rebase=true"
  run launch 1 --config damaged.textproto --set checkpoint.fallback=previous
  expect 0 "step-000000005" "done: 10 steps"
}

bad_data() {
  config bad 3
  run launch 1 --config bad.textproto --set model.vocab_size=280 --set data.tokenizer=
  expect 3 "tokens" "280"
  head -c 100 tokens.bin >short.bin
  cp tokens.idx short.idx
  run launch 1 --config bad.textproto --set data.train=short
  expect 3 "short.bin"
  printf 'good\xff\xfetext' >invalid
  run "$program" data tokenize --input invalid --tokenizer tokenizer.json --output invalid-tokens
  expect 3 "invalid" "4"
  [ ! -e invalid-tokens.idx ] || fail "half-made token files were left"
}

bad_configuration() {
  config wrong 3
  sed -i 's/num_heads: 4/num_heads: 5/; s/sequence_length: 64/sequence_lenght: 64/; s/global_batch: 4/global_batch: 0/' wrong.textproto
  run launch 1 --config wrong.textproto --set optimizer.beta1=1.5 --set parallel.pipeline=zigzag
  expect 2 "num_heads" "sequence_lenght" "sequence_length" "global_batch" "beta1" "zigzag" "1f1b"
  [ ! -e wrong ] || fail "a run directory was made"
  config wrong 3
  run launch 2 --config wrong.textproto --set parallel.tp=3
  expect 2 "tp"
  [ "$(grep -c 'error:' output)" = 1 ] || fail "every rank printed the error"
  run "$program" trian
  expect 2 "train"
}

not_finite() {
  config exploding 50
  run launch 2 --config exploding.textproto --set parallel.tp=2 --set optimizer.learning_rate=10 \
    --set optimizer.clip_norm=0 --set optimizer.weight_decay=10 --set schedule.warmup_fraction=0 --set checkpoint.every_steps=0
  expect 6 "step"
  [ -z "$(find exploding/checkpoints -name COMMIT)" ] || fail "something was saved"
}

generates() {
  config writer 30
  run launch 2 --config writer.textproto --set parallel.tp=2
  expect 0 "bits per byte"
  run "$program" generate --checkpoint writer --prompt "Entry" --max-tokens 20 --temperature 0
  expect 0 "Entry"
  cp output alone
  run "$root/launch/run.sh" -n 4 --program "$program" -- generate --checkpoint writer --prompt "Entry" --max-tokens 20 \
    --temperature 0 --pp 2
  expect 0
  cmp -s alone output || fail "4 ranks wrote '$(cat output)', one wrote '$(cat alone)'"
  run "$program" generate --checkpoint writer --prompt "Entry" --prompt "It is" --max-tokens 20 --temperature 0
  expect 0 "--- 2" "$(cat alone)"
  run "$program" train --config writer.textproto --dry-run --set parallel.pp=2
  expect 0 "stage 1"
}

make_data || { echo "FAILED: no data to test with" >&2; exit 1; }
cases=("$@")
[ ${#cases[@]} -gt 0 ] || cases=(killed_rank hanging_rank signalled damaged_checkpoint bad_data bad_configuration not_finite generates)
for case_name in "${cases[@]}"; do
  before=$failures
  $case_name
  if [ $failures = "$before" ]; then echo "ok     $case_name"; fi
done
[ $failures = 0 ]
