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

case_compressed_and_foreign_files() {
  tokens || return
  printf '{"text":"alpha"}\n{"text":"beta"}\n' >p.jsonl; gzip -k p.jsonl
  cat p.jsonl.gz p.jsonl >plain.jsonl.gz
  { cat p.jsonl.gz; head -c 512 /dev/zero; cat p.jsonl.gz; } >hole.jsonl.gz
  { cat p.jsonl.gz; head -c 512 /dev/zero; } >padded.jsonl.gz
  cat p.jsonl.gz p.jsonl.gz >two.jsonl.gz
  local f flag
  for f in plain hole; do
    run tokenize --input $f.jsonl.gz --field text --output o
    expect 3 "$f.jsonl.gz" "stored byte $(stat -c %s p.jsonl.gz)"
  done
  run tokenize --input two.jsonl.gz --field text --output two
  expect 0 '4 documents'
  run tokenize --input padded.jsonl.gz --field text --output padded
  expect 0 '2 documents' 'padding'
  printf 'PAR1\025\004\025\377\376\377data\377PAR1' >t.parquet; gzip -k t.parquet
  printf '\3757zXZ\0\0\004' >t.xz
  for flag in error replace; do
    for f in t.parquet t.parquet.gz t.xz; do
      run tokenize --input docs.jsonl $f --field text --invalid-utf8 $flag --output o
      expect 3 "$f"
      expect_not 'invalid-utf8'
    done
  done
  [ -z "$(left 'o.*')$(left '.o.*')" ] || wrong "left behind: $(ls -A)"
}

case_separators_and_bad_lines() {
  tokens || return
  printf 'one\r\n\r\ntwo\r\n\r\nthree\r\n' >crlf.txt; printf 'one\036two\036three' >rs.txt
  run tokenize --input crlf.txt --separator '\r\n\r\n' --output crlf
  expect 0 ' 3 documents'
  run tokenize --input rs.txt --separator '\x1e' --output rs
  expect 0 ' 3 documents'
  run tokenize --input rs.txt --separator '\q' --output no
  expect 2 'no escape'
  run tokenize --input rs.txt --separator '' --output no
  expect 2 'empty'
  printf '%s\n' '{"text":"one"}' '{"text":"half \ud83d"}' '{"text":null}' '{"text":"two","url":"x\udc80"}' >lines.jsonl
  run tokenize --input lines.jsonl --field text --output no
  expect 3 'lines.jsonl:2: the field "text"' '--invalid-utf8 replace' '--skip-bad-lines'
  run tokenize --input lines.jsonl --field text --invalid-utf8 replace --output no
  expect 3 'lines.jsonl:3: the field "text" is null' '--skip-bad-lines'
  run tokenize --input lines.jsonl --field text --invalid-utf8 replace --skip-bad-lines --output lines
  expect 0 ' 3 documents' '2 invalid UTF-8' '1 bad lines were left out; the first: lines.jsonl:3'
  run tokenize --input crlf.txt --skip-bad-lines --output no
  expect 2 '--field'
}

case_links_are_followed() {
  tokens || return
  mkdir store link; mv tok.json docs.jsonl store/
  ln -s ../store/tok.json link/tok.json; ln -s ../store/docs.jsonl link/docs.jsonl
  run "$program" data tokenize --input link/docs.jsonl --field text --tokenizer link/tok.json --threads 1 --output o
  expect 0 ' 400 documents'
  config tiny.textproto 1
  sed -i 's|"tok.json"|"link/tok.json"|' tiny.textproto
  run "$program" train --config tiny.textproto
  expect 0
}

case_tokenizers_of_ones_own() {
  tokens || return
  run "$program" data train-tokenizer --input corpus.txt --vocab-size 300 --special-token='<|user|>' --output user.json
  expect 0
  run "$program" data tokenize --input docs.jsonl --field text --append-eod --tokenizer user.json --output u
  expect 0
  run "$program" data train-tokenizer --input corpus.txt --vocab-size 300 --special-token='[BOS]' --special-token='[EOS]' --output eos.json
  expect 0
  run "$program" data tokenize --input docs.jsonl --field text --append-eod --tokenizer eos.json --output e
  expect 0
  run "$program" data inspect e --rows 0
  expect 0 'document end    id 1'
  run "$program" data tokenize --input docs.jsonl --field text --eod-token '[BOS]' --tokenizer eos.json --output b
  expect 0
  run "$program" data inspect b --rows 0
  expect 0 'document end    id 0'
  run "$program" data tokenize --input docs.jsonl --field text --eod-token '[STOP]' --tokenizer eos.json --output s
  expect 3 '[STOP]' 'added_tokens'
}

case_vocabulary_with_a_hole() {
  tokens || return
  sed 's/: 299,/: 310,/; s/: 299$/: 310/' tok.json >hole.json
  ! cmp -s tok.json hole.json || { wrong "set-up"; return; }
  run "$program" data tokenize --input docs.jsonl --field text --append-eod --tokenizer hole.json --output holed
  expect 0
  config tiny.textproto 1
  sed -i 's|"train"|"holed"|; s|"tok.json"|"hole.json"|; s/vocab_size: 300/vocab_size: 320/' tiny.textproto
  sed -i 's|data { train|data { validation_fraction: 0.1 train|' tiny.textproto
  run "$program" train --config tiny.textproto
  expect 0 'bits per byte'
  # The model knows nothing yet: it draws ids that no token has, too.
  run "$program" generate --checkpoint run --prompt 'Entry' --max-tokens 200 --temperature 5 --seed 1
  expect 0
}

run_cases "$@"
