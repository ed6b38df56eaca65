#!/usr/bin/env bash
# The whole story in a few minutes on a bare Debian or Ubuntu machine: install, build, get a real text, train a
# tokenizer, pretrain a small hybrid model on 4 MPI ranks, be interrupted, resume on another mesh, generate.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: launch/quickstart.sh [--steps N] [--fresh]
  --steps N  training steps of 4096 tokens (default 160)
  --fresh    forgets what an earlier call left in runs/quickstart
A second call reuses what is there and goes on where the first one stopped.
EOF
}

steps=160
fresh=false
while [ $# -gt 0 ]; do
  case $1 in
    --steps) steps=${2-}; shift 2 || { usage >&2; exit 2; } ;;
    --fresh) fresh=true; shift ;;
    --help | -h) usage; exit 0 ;;
    *) echo "quickstart.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done
if ! [[ $steps =~ ^[0-9]{1,7}$ ]] || [ "$steps" -lt 20 ]; then
  echo "quickstart.sh: --steps takes a whole number from 20 on" >&2
  exit 2
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=runs/quickstart
run=$work/steps-$steps
program=build/transxssm
bold='' plain=''
if [ -t 1 ]; then bold=$(tput bold 2>/dev/null || true) plain=$(tput sgr0 2>/dev/null || true); fi
say() { printf '\n%s== %s%s  [%dm%02ds]\n' "$bold" "$1" "$plain" $((SECONDS / 60)) $((SECONDS % 60)); }

say "Packages"
launch/install-deps.sh --quickstart

say "Build"
log=$(mktemp)
if ! { cmake --preset cpu && cmake --build --preset cpu --target transxssm; } >"$log" 2>&1; then
  tail -50 "$log"
  echo "quickstart.sh: the build failed; the whole log is $log" >&2
  exit 1
fi
rm -f "$log"
"$program" --version

if $fresh; then rm -rf "$work"; fi
mkdir -p "$work"

# A command whose output counts as made only when all of it is: written beside, then renamed.
make_file() {  # file, command...
  local file=$1
  shift
  [ ! -s "$file" ] || return 0
  "$@" >"$file.part"
  mv "$file.part" "$file"
}
# Bytes that are not UTF-8 (the dictionary has a few) become U+FFFD, in the part trained on and the part held out
# alike. (perl's decoder: its regular text layers would only warn.)
dictionary() {
  zcat </usr/share/dictd/gcide.dict.dz | perl -MEncode -ne 'print encode("UTF-8", decode("UTF-8", $_))'
}
# The last MiB, from its first whole line on, is held out.
held_out() { tail -c 1048576 "$work/all.txt" | tail -n +2; }
rest() { head -c $(($(stat -c %s "$work/all.txt") - $(stat -c %s "$work/held-out.txt"))) "$work/all.txt"; }

say "Text: the Collaborative International Dictionary of English"
make_file "$work/all.txt" dictionary
make_file "$work/held-out.txt" held_out
make_file "$work/train.txt" rest
held_out_bytes=$(stat -c %s "$work/held-out.txt")
gzip_bits=$(gzip -9 <"$work/held-out.txt" | wc -c | awk -v n="$held_out_bytes" '{ printf "%.3f", $1 * 8 / n }')
echo "$(stat -c %s "$work/train.txt") bytes to train on; $held_out_bytes held out, gzip -9: $gzip_bits bits per byte"

say "Tokenizer and token files"
if [ ! -e "$work/tokens.done" ]; then
  "$program" data train-tokenizer --input "$work/train.txt" --vocab-size 4096 --output "$work/tokenizer.json" --overwrite
  for part in train held-out; do
    "$program" data tokenize --input "$work/$part.txt" --tokenizer "$work/tokenizer.json" --output "$work/$part" --overwrite
  done
  touch "$work/tokens.done"
fi
"$program" data inspect "$work/held-out" --rows 1 --tokens 24

cat >"$work/config-$steps.textproto" <<EOF
# Written by launch/quickstart.sh: the tiny preset with a vocabulary of 4096.
model { preset: "tiny" vocab_size: 4096 }
data {
  train { prefix: "$work/train" }
  validation: "$work/held-out"
  tokenizer: "$work/tokenizer.json"
  sequence_length: 512
}
optimizer { learning_rate: 2e-3 }
schedule { steps: $steps }
parallel { global_batch: 8 microbatch_size: 2 }
checkpoint { every_steps: $((steps / 2)) }
log {
  run_directory: "$run"
  every_steps: 5
  validation_every_steps: $((steps / 4))
  validation_rows: 64
  final_validation_rows: 0  # all
}
EOF

# Trains on 4 ranks in the background, so that this script hears signals: Ctrl-C saves, then ends the script.
job=
user_stop=false
# shellcheck disable=SC2317  # called by the trap
stop() {
  user_stop=true
  [ -z "$job" ] || kill -TERM "$job" 2>/dev/null || true
  [ -n "$job" ] || exit 130
}
trap stop INT TERM HUP
train() {
  launch/run.sh -n 4 -- train --config "$work/config-$steps.textproto" "$@" --resume auto &
  job=$!
}
# Sets status to the job's exit code.
finish() {
  while :; do
    status=0
    wait "$job" || status=$?
    kill -0 "$job" 2>/dev/null || break
  done
  job=
  if $user_stop; then
    echo "quickstart.sh: stopped (exit $status); the same command goes on from the last checkpoint" >&2
    exit "$status"
  fi
}
last_step() { { grep -o '^{"step":[0-9]*' "$run/metrics.jsonl" 2>/dev/null || true; } | tail -n 1 | tr -dc 0-9; }
committed() { compgen -G "$run/checkpoints/step-*/COMMIT" >/dev/null; }

if [ ! -e "$run/complete" ]; then
  if ! committed; then
    rm -rf "$run"  # what a start left that was killed before its first checkpoint
    say "Pretraining on 4 ranks: 2 pipeline stages x 2 tensor-parallel halves"
    interrupt_at=$((steps * 2 / 5))
    train --set parallel.pp=2 --set parallel.tp=2
    while kill -0 "$job" 2>/dev/null; do
      step=$(last_step)
      [ "${step:-0}" -lt "$interrupt_at" ] || break
      sleep 0.3
    done
    say "Step $(last_step): sending itself SIGTERM, as a scheduler would"
    kill -TERM "$job" 2>/dev/null || true
    finish
    if [ "$status" != 75 ]; then
      echo "quickstart.sh: training ended with exit code $status, not 75 (saved after a signal)" >&2
      exit $((status ? status : 1))
    fi
  fi
  say "Resuming on another mesh: 2 replicas x 2 tensor-parallel halves"
  train --set parallel.dp=2 --set parallel.tp=2
  finish
  [ "$status" = 0 ] || exit "$status"
  touch "$run/complete"
fi

say "What the model writes"
prompt='Ocean, n. '
"$program" generate --checkpoint "$run/checkpoints" --prompt "$prompt" --max-tokens 120 --temperature 0.8 --top-p 0.95 --seed 1
echo

model_bits=$(grep -o '"eval/bits_per_byte":[0-9.eE+-]*' "$run/metrics.jsonl" | tail -n 1 | cut -d: -f2)
say "Done"
printf '%-22s %s\n' \
  "bits per byte" "$(awk -v m="$model_bits" -v g="$gzip_bits" 'BEGIN { printf "%.3f on the held-out text; gzip -9: %s", m, g }')" \
  "checkpoint" "$(find "$run/checkpoints" -maxdepth 1 -name 'step-*' | sort | tail -n 1)" \
  "metrics" "$run/metrics.jsonl (and TensorBoard: tensorboard --logdir $run)" \
  "report" "$run/report.html" \
  "configuration" "$work/config-$steps.textproto" \
  "more text" "$program generate --checkpoint $run/checkpoints --prompt 'Light, n. '"
