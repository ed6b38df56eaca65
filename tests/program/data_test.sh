#!/usr/bin/env bash
# data_test.sh PROGRAM [CASE...]: text, tokenizers and token files as users have them.
# shellcheck source=tests/program/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

tokenize() { "$program" data tokenize --tokenizer tok.json --threads 1 "$@"; }
# left PATTERN: files of that name, hidden ones too.
left() { find . -mindepth 1 -name "$1" | sort | tr '\n' ' '; }

case_outputs_spare_inputs() {
  tokens || return
  head -20 docs.jsonl >corpus.json; cp corpus.json corpus.kept; cp tok.json tokenizer.json
  ln -s corpus.json link.json
  for flag in '' --overwrite; do
    run tokenize --input corpus.json --field text --output corpus $flag
    expect 2 'corpus.json'
    run tokenize --input link.json --field text --output corpus $flag
    expect 2 'corpus.json'
    run "$program" data tokenize --input docs.jsonl --field text --tokenizer tokenizer.json --output tokenizer $flag
    expect 2 'tokenizer.json'
    run "$program" data train-tokenizer --input corpus.txt --vocab-size 300 --output corpus.txt $flag
    expect 2 'corpus.txt'
  done
  cmp corpus.json corpus.kept || wrong "an input was replaced"
  cmp tok.json tokenizer.json || wrong "the tokenizer was replaced"
  echo '{"notes": "by hand"}' >other.json; cp other.json other.kept
  run tokenize --input docs.jsonl --field text --output other
  expect 2 'other.json exists' '--overwrite'
  cmp other.json other.kept || wrong "a file of somebody else was replaced"
  [ -z "$(left '.*')$(left 'corpus.bin')$(left 'other.bin')" ] || wrong "left behind: $(ls -A)"
}

case_two_jobs_with_one_output() {
  tokens || return
  mkfifo f1 f2
  tokenize --input f1 --field text --output out >a.log 2>&1 & local a=$!
  exec 7<>f1; head -5 docs.jsonl >&7
  for _ in $(seq 100); do [ -e .out.bin.lock ] && break; sleep 0.1; done
  exec 8<>f2; head -3 docs.jsonl >&8
  run tokenize --input f2 --field text --output out
  exec 8>&-
  expect 2 'out.bin is being written by process'
  exec 7>&-; wait $a || wrong "the first job: $(tail -3 a.log)"
  run "$program" data inspect out --rows 0
  expect 0 'documents       5'
  [ -z "$(left '.out*')" ] || wrong "left behind: $(left '.out*')"
}

case_outputs_are_checked_before_the_work() {
  corpus
  # Nobody writes into the pipe: whoever reads it waits for ever.
  mkfifo in
  run timeout 20 "$program" data train-tokenizer --input in --vocab-size 300 --output no/such/tok.json
  expect 2 'no/such/tok.json' 'mkdir -p'
  mkdir taken.json
  run timeout 20 "$program" data train-tokenizer --input in --vocab-size 300 --output taken.json --overwrite
  expect 2 'is a directory'
  tokens || return
  run timeout 20 "$program" data tokenize --input in --tokenizer tok.json --output no/such/train
  expect 2 'no/such/train.bin' 'mkdir -p'
  [ ! -e no ] || wrong "a directory was made"
}

case_full_disk_leaves_nothing() {
  tokens || return
  mkdir m && mount -t tmpfs -o size=64k tmpfs m 2>/dev/null || skip "no file system can be mounted here"
  run tokenize --input docs.jsonl docs.jsonl docs.jsonl docs.jsonl --field text --output m/train
  expect 9 'm/train.bin cannot be written' 'No space left'
  [ -z "$(ls -A m)" ] || wrong "left behind: $(ls -A m)"
  head -c 64k /dev/zero >m/rest 2>/dev/null
  run "$program" data train-tokenizer --input corpus.txt --vocab-size 300 --output m/tok.json
  [ "$status" = 9 ] || [ "$status" = 2 ] || wrong "exit code $status: $(tail -1 "$output")"
  [ "$(ls -A m)" = rest ] || wrong "left behind: $(ls -A m)"
  umount m
}

case_a_signal_leaves_nothing() {
  tokens || return
  mkfifo in
  for signal in INT TERM HUP; do
    # A background job of a script ignores SIGINT; env gives it back.
    env --default-signal=INT "$program" data tokenize --tokenizer tok.json --input in --output out >a.log 2>&1 & local job=$!
    exec 7<>in; echo text >&7
    for _ in $(seq 100); do [ -e .out.bin.lock ] && break; sleep 0.1; done
    kill -$signal $job; wait $job
    [ $? = $((128 + $(kill -l $signal))) ] || wrong "$signal: another exit code"
    exec 7>&-
    [ -z "$(left '*out*.*')" ] || wrong "$signal left: $(left '*out*.*')"
  done
}

run_cases "$@"
