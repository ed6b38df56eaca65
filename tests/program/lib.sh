# Sourced by the tests of this folder: the program as a user meets it, each case in a directory of its own.
#   NAME_test.sh PROGRAM [CASE...]
# A test script sources this file, defines functions case_NAME, and ends with `run_cases "$@"`. A case ends with
# success unless it calls `wrong`; `skip REASON` leaves it out, by name and counted.
# shellcheck shell=bash
set -uo pipefail

program=$(realpath "${1:?the program transxssm}")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# What a case runs writes here.
output=output.log
status=0

wrong() { echo "WRONG $case_name: $*"; case_wrong=1; }
skip() { echo "SKIPPED $case_name: $*"; exit 77; }
# run COMMAND...: its exit code goes to `status`, what it prints to $output.
run() { status=0; "$@" >"$output" 2>&1 || status=$?; }
# expect CODE TEXT...: the last run's exit code, and words that it must have printed.
expect() {
  local code=$1 text
  shift
  [ "$status" = "$code" ] || wrong "exit code $status instead of $code; it printed: $(tail -n 15 "$output")"
  for text in "$@"; do grep -qF -- "$text" "$output" || wrong "'$text' is not in: $(tail -n 15 "$output")"; done
}
# expect_not TEXT...: words that the last run must not have printed.
expect_not() { for text in "$@"; do ! grep -qF -- "$text" "$output" || wrong "'$text' is in: $(grep -F -- "$text" "$output" | head -3)"; done; }

# corpus: corpus.txt and docs.jsonl of 400 documents; tokens: tok.json (300 ids) and train.bin/.idx from them.
corpus() {
  local i
  for i in $(seq 400); do
    echo "Entry $i. The word number $i follows $((i - 1)) and stands before $((i + 1)); it is $((i % 7)) by sevens."
  done >corpus.txt
  sed 's/.*/{"text":"&"}/' corpus.txt >docs.jsonl
}
tokens() {
  corpus
  "$program" data train-tokenizer --input corpus.txt --vocab-size 300 --output tok.json >setup.log 2>&1 &&
    "$program" data tokenize --input docs.jsonl --field text --append-eod --tokenizer tok.json --threads 1 \
      --output train >>setup.log 2>&1 || { wrong "set-up: $(tail -5 setup.log)"; return 1; }
}
# config FILE STEPS [LINE...]: a run of two layers over `tokens`; further lines are added as they are.
config() {
  local file=$1 steps=$2
  shift 2
  cat >"$file" <<CONFIG
model { vocab_size: 300 d_model: 16 num_layers: 2 num_heads: 2 d_ff: 32 d_state: 8 chunk: 8 attn_period: 2 attn_offset: 1 }
data { train { prefix: "train" } tokenizer: "tok.json" sequence_length: 32 }
schedule { steps: $steps }
parallel { global_batch: 4 }
checkpoint { every_steps: 3 }
log { run_directory: "run" every_steps: 1 validation_every_steps: 3 }
precision { compute: "f32" }
CONFIG
  printf '%s\n' "$@" >>"$file"
}

# Runs the cases named in the arguments after the program, or all; exit code 0: none was wrong, 77: all were skipped.
run_cases() {
  shift
  local failed=0 skipped=0 count=0 names=("$@") name code scratch
  [ $# -gt 0 ] || mapfile -t names < <(declare -F | sed -n 's/^declare -f case_//p')
  scratch=$(mktemp -d "${TMPDIR:-/tmp}/program-test.XXXXXX")
  # shellcheck disable=SC2064  # the directory's name is meant now
  trap "rm -rf '$scratch'" EXIT
  for name in "${names[@]}"; do
    count=$((count + 1))
    mkdir "$scratch/$name"
    (
      case_name=$name case_wrong=0
      cd "$scratch/$name" || exit 1
      "case_$name"
      exit "$case_wrong"
    )
    code=$?
    case $code in
      0) echo "right $name" ;;
      77) skipped=$((skipped + 1)) ;;
      *) failed=$((failed + 1)); echo "FAILED $name ($code)" ;;
    esac
    rm -rf "${scratch:?}/$name"
  done
  echo "$((count - failed - skipped)) cases right, $failed failed, $skipped skipped"
  [ $failed = 0 ] || exit 1
  [ $skipped -lt $count ] || exit 77
}
