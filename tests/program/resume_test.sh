#!/usr/bin/env bash
# Going on with a run: what is taken over, what is said, what is refused, and what is left alone.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

train() { run "$program" train --config tiny.textproto "$@"; }
# steps_of RUN NAME: the steps at which metrics.jsonl has that number, one a line.
steps_of() { grep "\"$2\"" "$1/metrics.jsonl" | sed 's/^{"step":\([0-9]*\).*/\1/'; }
rate_at() { grep "^{\"step\":$2," "$1/metrics.jsonl" | grep -o '"train/learning_rate":[^,]*' | tail -n 1 | cut -d: -f2; }
quiet=(--set log.validation_every_steps=0 --set log.every_steps=100 --set log.final_validation_rows=4)

# A run by tokens trains as many of them, whatever becomes of batch and length, on the same curve.
case_tokens_after_a_change_of_the_step() {
  tokens || return
  config tiny.textproto 0 'schedule { tokens: 5120 }'
  sed -i '/^schedule { steps/d; s/every_steps: 3 }/every_steps: 20 }/' tiny.textproto
  train "${quiet[@]}"
  expect 0 "5,120 tokens"
  rm -r run/checkpoints/step-000000040
  local change steps
  for change in parallel.global_batch=8:30 parallel.global_batch=2:60 data.sequence_length=16:60; do
    rm -rf again
    cp -r run again
    steps=${change#*:}
    train "${quiet[@]}" --set log.run_directory=again --set "${change%:*}"
    expect 0 "done: $steps steps, 5,120 tokens" "${change%=*}" "steps of"
    [ "$(rate_at again "$steps")" = "$(rate_at run 40)" ] || wrong "$change: the last rate is $(rate_at again "$steps")"
  done
}

case_a_rate_that_would_jump() {
  tokens || return
  config tiny.textproto 6
  train "${quiet[@]}"
  expect 0
  rm -r run/checkpoints/step-000000006
  cp run/metrics.jsonl run/config.textproto .
  train --set schedule.steps=12
  expect 2 "would jump from" "schedule.steps 6 -> 12" "schedule.rebase=true"
  cmp -s metrics.jsonl run/metrics.jsonl && cmp -s config.textproto run/config.textproto || wrong "the run was changed"
  train --set optimizer.learning_rate=1e-3
  expect 2 "optimizer.learning_rate 0.0003 -> 0.001"
  train "${quiet[@]}" --set schedule.steps=12 --set schedule.rebase=true
  expect 0 "done: 12 steps" "(was "
  # It was said for that start.
  grep -q 'rebase: false' run/config.textproto || wrong "rebase is kept: $(grep rebase run/config.textproto)"
}

case_a_finished_run() {
  tokens || return
  config tiny.textproto 6
  train
  expect 0 "done: 6 steps"
  find run -type f ! -path '*/log/*' ! -name LOCK -exec cksum {} + | sort >before
  train
  expect 0 "done already: 6 steps" "step-000000006"
  find run -type f ! -path '*/log/*' ! -name LOCK -exec cksum {} + | sort | cmp -s - before || wrong "the run was changed"
  # More steps: at the rate it ended with.
  train --set schedule.steps=9
  expect 0 "schedule.steps 6 -> 9" "has come to its end" "done: 9 steps"
  [ "$(rate_at run 9)" = "$(rate_at run 6)" ] || wrong "rate $(rate_at run 6), then $(rate_at run 9)"
  # The last validation was cut off: it is made up for.
  grep -v '"step":9,.*"eval/loss"' run/metrics.jsonl >cut
  mv cut run/metrics.jsonl
  train --set schedule.steps=9
  expect 0 "validation at step 9" "done: 9 steps"
  train --set schedule.steps=9
  expect 0 "done already"
}

# A step at which a run stops is evaluated, once; so are those after it.
case_stopped_where_validation_is_due() {
  tokens || return
  config tiny.textproto 400
  sed -i 's/^checkpoint .*/checkpoint { every_steps: 0 }/; s/validation_every_steps: 3/validation_every_steps: 1 validation_rows: 4 final_validation_rows: 4/' tiny.textproto
  "$program" train --config tiny.textproto >"$output" 2>&1 &
  local job=$! stop
  for _ in $(seq 300); do [ "$(grep -c train/loss run/metrics.jsonl 2>/dev/null)" -ge 3 ] 2>/dev/null && break; sleep 0.1; done
  kill -USR1 $job
  status=0
  wait $job || status=$?
  expect 75 "go on with: launch/run.sh -n 1 -- train --config run/config.textproto"
  stop=$(find run/checkpoints -name 'step-*' | sed 's/.*step-0*//')
  [ "$(steps_of run eval/loss | tail -n 1)" = "$stop" ] || wrong "stopped at $stop, evaluated at $(steps_of run eval/loss | tail -n 1)"
  # As a kill between save and validation leaves it.
  grep -v "\"step\":$stop,.*\"eval/loss\"" run/metrics.jsonl >cut
  mv cut run/metrics.jsonl
  run "$program" train --config run/config.textproto --set schedule.kind=cosine --set schedule.rebase=true --set schedule.steps=$((stop + 2))
  expect 0 "validation at step $stop:"
  [ "$(steps_of run eval/loss | sort -n | uniq | wc -l)" = $((stop + 2)) ] || wrong "evaluated at $(steps_of run eval/loss | tr '\n' ' ')"
  [ "$(steps_of run eval/loss | sort -n | uniq -d)" = "" ] || wrong "evaluated twice: $(steps_of run eval/loss | sort -n | uniq -d)"
}

case_the_printed_command() {
  tokens || return
  config tiny.textproto 0 'schedule { tokens: 1280000 }'
  sed -i "/^schedule { steps/d; s/run_directory: \"run\"/run_directory: \"a run's\"/" tiny.textproto
  "$program" train --config tiny.textproto "${quiet[@]}" >"$output" 2>&1 &
  local job=$! command
  for _ in $(seq 300); do [ -s "a run's/metrics.jsonl" ] && break; sleep 0.1; done
  sleep 0.3
  kill -USR1 $job
  status=0
  wait $job || status=$?
  expect 75 "go on with: "
  command=$(sed -n 's/.*go on with: //p' "$output")
  eval "set -- ${command#*-- }"
  run "$program" "$@" --dry-run
  expect 0 "run       10000 steps = 1,280,000 tokens"
  run "$program" "$@" --set schedule.tokens=128
  expect 0 "nothing is left to do" "done: "
}

case_nothing_is_made_before_a_mistake() {
  tokens || return
  config tiny.textproto 6
  mkdir there && touch there/mine
  local mistake
  for mistake in data.train=missing data.tokenizer=missing.json data.validation=missing model.vocab_size=280 \
    precision.compute=bf17 data.train= schedule.tokens=7; do
    train --set log.run_directory=new/run --set "$mistake"
    [ "$status" = 2 ] || [ "$status" = 3 ] || wrong "$mistake: exit code $status: $(cat "$output")"
    [ ! -e new ] || wrong "$mistake: a directory was made: $(find new)"
    train --set log.run_directory=there --set "$mistake"
    [ "$(ls -A there)" = mine ] || wrong "$mistake: the directory was changed: $(find there)"
  done
  train --resume nowhere
  expect 4 "nowhere"
  [ ! -e run ] || wrong "a directory was made for a checkpoint that is not there"
  # All files that are missing, and mistakes beside them.
  train --set data.train=p,q --set data.tokenizer=t.json --set data.validation=v
  expect 3 "p.bin" "q.idx" "t.json" "v.bin"
  train --set data.train=p --set data.tokenizer=t.json --set parallel.tp=7
  expect 2 "p.bin" "t.json" "parallel.tp"
}

case_a_tokenizer_later() {
  tokens || return
  config tiny.textproto 6
  train "${quiet[@]}" --set data.tokenizer= --set log.run_directory=without
  expect 0
  train "${quiet[@]}" --set log.run_directory=without --set schedule.steps=9
  expect 0 "data.tokenizer none -> tok.json" "done: 9 steps"
  run "$program" generate --checkpoint without --prompt Entry --max-tokens 3
  expect 0
  train "${quiet[@]}" --set data.tokenizer= --set log.run_directory=without --set schedule.steps=12
  expect 0 "data.tokenizer is no longer given"
  run "$program" generate --checkpoint without --prompt Entry --max-tokens 3
  expect 0
  head -n 100 corpus.txt >other.txt
  run "$program" data train-tokenizer --input other.txt --vocab-size 280 --output other.json
  train --set data.tokenizer=other.json --set log.run_directory=without --set schedule.steps=15
  [ "$status" = 2 ] || [ "$status" = 3 ] || wrong "another tokenizer: exit code $status"
}

case_limits() {
  tokens || return
  config tiny.textproto 6
  local change
  for change in "schedule.steps=0 schedule.tokens=1000000000000" "schedule.steps=0 schedule.tokens=9223372036854775807" \
    "schedule.steps=1000000000" "schedule.steps=999999999 parallel.global_batch=16777216 data.sequence_length=16777216"; do
    # shellcheck disable=SC2046  # one word a setting
    train --dry-run $(printf -- '--set %s ' $change)
    expect 2 "schedule."
    expect_not "= -"
  done
  train --dry-run --set schedule.steps=999999999
  expect 0 "run       999999999 steps = 127,999,999,872 tokens"
}

run_cases "$@"
