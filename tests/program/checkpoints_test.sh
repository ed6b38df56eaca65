#!/usr/bin/env bash
# One answer for a checkpoint, whatever its directory is called and wherever it lies.
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# finds PATH STEP: every command that takes a checkpoint finds that step there.
exported=0
finds() {
  run "$program" checkpoint ls "$1"
  expect 0 "step         $2"
  run "$program" checkpoint verify "$1"
  expect 0 whole
  run "$program" checkpoint inspect "$1"
  expect 0 "step              $2"
  run "$program" generate --checkpoint "$1" --prompt Entry --max-tokens 2
  expect 0 Entry
  exported=$((exported + 1))
  run "$program" checkpoint export-hf "$1" "exported-$exported"
  expect 0 model_type
  rm -rf resumed
  run "$program" train --config run.textproto --set log.run_directory=resumed --set schedule.steps=7 --set schedule.rebase=true --resume "$1" \
    --set checkpoint.directory=checkpoints
  expect 0 "step $2"
}

# trained [SETTING...]: six steps in the directory run.
trained() {
  tokens && config run.textproto 6 || return 1
  run "$program" train --config run.textproto "$@"
  expect 0
}

case_directory_of_another_name() {
  trained --set checkpoint.directory=ckpts || return
  finds run 6
  finds run/ckpts/ 6
  run "$program" train --config run/config.textproto --set schedule.steps=8
  expect 0 'resuming from run/ckpts/step-000000006'
  run "$program" checkpoint ls run
  expect 0 'step         8'
}

case_directory_elsewhere() {
  trained --set checkpoint.directory="$PWD/big disk/of all" || return
  [ -d 'big disk/of all/step-000000006' ] || wrong "kept elsewhere: $(find . -name 'step-*')"
  [ ! -e run/checkpoints ] || wrong 'made run/checkpoints'
  finds run 6
  finds 'big disk/of all' 6
  run "$program" train --config run/config.textproto --set schedule.steps=8
  expect 0 'resuming from'
  # One run at a time, though the run directories differ.
  flock 'big disk/of all/LOCK' "$program" train --config run/config.textproto --set schedule.steps=9 \
    --set log.run_directory=other \
    >"$output" 2>&1
  status=$?
  expect 2 'is in use by'
  rm -r 'big disk'
  run "$program" generate --checkpoint run --prompt Entry
  expect 4 'big disk/of all'
}

case_links_copies_and_names() {
  trained || return
  ln -s step-000000003 run/checkpoints/latest
  ln -s ../run/checkpoints place
  mkdir deep && ln -s ../run deep/link
  cp -r run/checkpoints/step-000000003 best
  cp -r run/checkpoints/step-000000003 'auto'
  finds run/checkpoints/latest 3
  finds deep/link/ 6
  finds best 3
  finds ./auto 3
  run "$program" generate --checkpoint auto --prompt Entry --max-tokens 2
  expect 0 Entry
  (cd run/checkpoints/step-000000003 && "$program" checkpoint verify . >../../../verify.log) || wrong 'not found as .'
  run "$program" checkpoint ls place
  expect 4 place
  rm best/COMMIT
  run "$program" generate --checkpoint best --prompt Entry
  expect 4 'no COMMIT mark'
}

case_what_is_not_there() {
  tokens && config run.textproto 6 || return
  mkdir -p empty other/photos
  touch file
  local path command
  for path in missing none auto file other; do
    for command in 'checkpoint ls' 'checkpoint verify' 'checkpoint inspect' 'generate --prompt x --checkpoint'; do
      # shellcheck disable=SC2086  # a command is several words
      run "$program" $command "$path"
      expect 4 "$path"
    done
    run "$program" checkpoint export-hf "$path" exported
    expect 4 "$path"
  done
  for path in missing file other empty; do
    run "$program" train --config run.textproto --resume "$path"
    expect 4 "$path"
  done
  run "$program" checkpoint ls empty
  expect 0 'no checkpoints in empty'
  run "$program" checkpoint verify empty
  expect 4 empty
}

run_cases "$@"
