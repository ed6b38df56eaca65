#!/usr/bin/env bash
# What must be seen on a real GPU: correctness, then speed. Each step has its own time and none stops the others; the
# report says what passed, failed, ran out of time or was left out. Needs a driver and the CUDA libraries, no compiler:
# runs from a build folder of the preset cuda, or from a bundle packed by `launch/bundle.sh --gpu-tests`.
set -uo pipefail

usage() {
  cat <<'EOF'
Usage: tests/gpu.sh [--build DIR | --emulated DIR] [--out DIR] [--only STEP]... [--quick]
                    [--golden DIR] [--data PREFIX] [--peer COMMAND]
  --build DIR      a build folder (build-cuda); a bundle finds its own programs
  --emulated DIR   a dry run: the same steps on the emulated device of a CPU build, with tiny sizes
  --out DIR        where report.md and the logs go ($OUT, else gpu-report)
  --only STEP      instructions, operations, nccl, training, golden, curve, repeat, mesh, kernels or train; repeatable
  --quick          what fits into ten minutes: fewer steps of training, benchmarks of 4K tokens
  --golden DIR     a folder with golden folders: each with P 64 and transxssm-p64 are compared in bf16
  --data PREFIX    tokens to train on, ids below 8192; else the program makes them from the text of the bundle or of
                   the package dict-gcide
  --peer COMMAND   a peer for the training benchmarks that prints a JSON line with tokens_per_s; {preset} (320m, 1.3b),
                   {batch} and {seq} in it are replaced
EOF
}
fail() { echo "gpu.sh: $1" >&2; exit 2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build="" emulated=false out=${OUT:-gpu-report} golden="" data="" peer="" quick=false
only=()
steps=(instructions operations nccl training golden curve repeat mesh kernels train)
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=${2:?--build needs a folder}; shift 2 ;;
    --emulated) build=${2:?--emulated needs a folder}; emulated=true; shift 2 ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --golden) golden=${2:?--golden needs a folder}; shift 2 ;;
    --data) data=${2:?--data needs a prefix}; shift 2 ;;
    --peer) peer=${2:?--peer needs a command}; shift 2 ;;
    --quick) quick=true; shift ;;
    --only)
      [[ " ${steps[*]} " == *" ${2-} "* ]] || fail "--only ${2-}: the steps are ${steps[*]}"
      only+=("$2"); shift 2 ;;
    --help | -h) usage; exit 0 ;;
    *) usage >&2; fail "unknown option $1" ;;
  esac
done
if [ -z "$build" ] && [ -x "$here/run" ]; then
  export PATH="$here/bin:$PATH"  # of the bundle
else
  : "${build:=$here/../build-cuda}"
  build=$(cd "$build" 2>/dev/null && pwd) || fail "there is no build folder; see --build"
  export PATH="$build:$PATH"
fi
mkdir -p "$out" || fail "--out $out cannot be made"
out=$(cd "$out" && pwd)
golden=${golden:+$(cd "$golden" && pwd)}
report=$out/report.md

# NCCL and cuDNN are often there as the packages of a Python framework alone. The peer keeps its own search path.
library_path=${LD_LIBRARY_PATH-}
while read -r packages; do
  for folder in "$packages"/*/lib; do
    [ ! -d "$folder" ] || export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
  done
done < <(python3 -c 'import nvidia; print(*nvidia.__path__, sep="\n")' 2>/dev/null)

# Several ranks on whatever this machine has.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_btl_vader_single_copy_mechanism=none

# The programs, and how large the work is.
if $emulated; then
  program=transxssm_emulated
  tests_of() { case $1 in operations) echo test_kernels_emulated ;; instructions) echo test_cuda ;; training) echo test_cuda_training ;; esac; }
  filter_of() { case $1 in operations) echo 'RmsNorm.*' ;; instructions) echo 'CudaInstructions.*' ;; training) echo '*EqualsTheCpuAndItself/llama' ;; esac; }
  nccl=(test_devices --gtest_filter='*NcclConformance*_2')
  tiny='preset: "tiny" vocab_size: 512 num_layers: 2 layer_pattern: "SA" d_ff: 128 d_model: 128 num_heads: 2'
  rows=2 tokens=64 curve_steps=3 vocabulary=512
  kernel_shapes=("tiny 1 64 norm") train_shapes=("tiny 1 64")
  : "${peer:=echo '{\"tokens_per_s\": {seq}}'}"
  train_options=(--steps 1 --set model.num_layers=2 --set model.layer_pattern=SA --set model.vocab_size=512)
else
  program=transxssm
  tests_of() { case $1 in operations) echo test_kernels_gpu ;; instructions) echo test_cuda_gpu ;; training) echo test_training_gpu ;; esac; }
  filter_of() { echo '*'; }
  nccl=(mpirun -n 2 test_nccl_gpu)
  tiny='preset: "tiny"'
  rows=8 tokens=512 curve_steps=200 vocabulary=8192
  kernel_shapes=("transxssm-320m 8 4096 " "transxssm-320m 2 16384 " "transxssm-1.3b 2 4096 " "transxssm-1.3b 1 16384 ")
  train_shapes=()
  for preset in transxssm-320m llama-320m; do train_shapes+=("$preset 8 4096" "$preset 2 16384"); done
  for preset in transxssm-1.3b llama-1.3b; do train_shapes+=("$preset 2 4096" "$preset 1 16384"); done
  train_options=(--steps 10)
  if $quick; then
    curve_steps=60
    kernel_shapes=("transxssm-320m 8 4096 ")
    train_shapes=("transxssm-320m 8 4096" "transxssm-1.3b 2 4096")
    train_options=(--steps 4)
  fi
fi
command -v $program >/dev/null || fail "$program is not built in $build"

passed=0 failed=0 skipped=0
failures=()
seconds_since() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }'; }
wanted() { [ ${#only[@]} = 0 ] || [[ " ${only[*]} " == *" $1 "* ]]; }
row() { printf '| %s | %s | %s | %s |\n' "$@" >>"$report"; printf '%-34s %-12s %8s  %s\n' "$@"; }
skip() { wanted "$1" || return 0; skipped=$((skipped + 1)); row "$2" skipped "" "$3"; }

# run STEP NAME SECONDS COMMAND...: its output goes to NAME.log, the last line that says something into the report.
run() {
  local step=$1 name=$2 budget=$3 begin status=0 word note
  shift 3
  wanted "$step" || return 0
  if ! command -v "$1" >/dev/null && [ "$(type -t "$1")" != function ]; then
    skip "$step" "$name" "$1 is not here"
    return 0
  fi
  begin=$(date +%s.%N)
  if [ "$(type -t "$1")" = function ]; then
    "$@" >"$out/$name.log" 2>&1 || status=$?  # keeps its own time
  else
    timeout -k 10 "$budget" "$@" >"$out/$name.log" 2>&1 || status=$?
  fi
  if [ $status = 8 ] && grep -q 'has no GPU' "$out/$name.log"; then status=77; fi
  case $status in
    0) word=passed passed=$((passed + 1)) ;;
    77) word=skipped skipped=$((skipped + 1)) ;;
    124 | 137) word="TIMED OUT" failed=$((failed + 1)) failures+=("$name") ;;
    *) word="FAILED ($status)" failed=$((failed + 1)) failures+=("$name") ;;
  esac
  note=$(grep -aE 'PASSED  \]|FAILED  \]|error:|error while|skipped:|within|differ|^ratio|^speed' "$out/$name.log" | tail -n 1 | cut -c 1-160 | tr '|' '/')
  row "$name" "$word" "$(seconds_since "$begin") s" "$note"
  return 0
}

{
  echo "# TransXSSM on a GPU"
  echo
  echo "$(date -u +%F), \`$program\` $($program --version | head -n 1)"
  echo
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || true
  if $emulated; then echo "Emulated device: every figure below is of the emulation, and says nothing about speed."; fi
  echo
  echo "| step | result | time | |"
  echo "|---|---|---|---|"
} >"$report"

# Instructions first: all kernels are written with them.
for step in instructions operations training; do
  test_program=$(tests_of $step)
  run $step "$step" 300 "$test_program" --gtest_filter="$(filter_of $step)"
done
run nccl nccl 180 "${nccl[@]}"

# Against the figures of another program.
if [ -z "$golden" ]; then
  skip golden golden "no --golden DIR"
else
  found=false
  for folder in "$golden" "$golden"/*/; do
    if [ ! -f "$folder/golden.safetensors" ] || [ ! -f "$folder/bf16_error.json" ]; then continue; fi
    [ "$(tr -d ' \n' <"$folder/config.json" | sed -nE 's/.*"hidden_size":([0-9]+).*"num_attention_heads":([0-9]+).*/\1 \2/p; t; s/.*"num_attention_heads":([0-9]+).*"hidden_size":([0-9]+).*/\2 \1/p' |
        awk '{ print $1 / $2 }')" = 64 ] || continue
    found=true
    run golden "golden-$(basename "$folder")" 120 $program selfcheck --golden "$folder" --set parallel.device=cuda --set precision.compute=bf16
  done
  $found || skip golden golden "no folder of $golden has P 64 and bf16_error.json"
fi

# Real text, as tokens.
text_of_machine() {
  if $emulated; then cat "$here"/README.md "$here"/*/README.md; return; fi
  for file in "$here"/text/*; do [ ! -f "$file" ] || { cat "$file"; return; }; done
  [ -f /usr/share/dictd/gcide.dict.dz ] && zcat </usr/share/dictd/gcide.dict.dz 2>/dev/null | head -c 8000000 | tr -cd '\11\12\40-\176'
}
make_data() {
  text_of_machine >"$out/text.txt"
  [ "$(stat -c %s "$out/text.txt")" -ge $((curve_steps * rows * tokens)) ] || return 77
  timeout 200 $program data train-tokenizer --input "$out/text.txt" --vocab-size $vocabulary --output "$out/tokenizer.json" --overwrite &&
    timeout 100 $program data tokenize --input "$out/text.txt" --tokenizer "$out/tokenizer.json" --output "$out/tokens" --overwrite
}
if { wanted curve || wanted repeat || wanted mesh; } && [ -z "$data" ]; then
  if make_data >"$out/data.log" 2>&1; then data=$out/tokens; fi
fi
cat >"$out/tiny.textproto" <<EOF
model { $tiny }
data { train { prefix: "$data" } sequence_length: $tokens validation_fraction: 0 }
schedule { steps: $curve_steps }
parallel { global_batch: $rows microbatch_size: $((rows / 2)) }
log { run_directory: "$out/run" every_steps: 10 }
EOF
train_run() {  # name, seconds, settings...
  local directory=$out/run-$1 budget=$2
  shift 2
  rm -rf "$directory"
  timeout -k 10 "$budget" ${launcher[@]+"${launcher[@]}"} $program train --config "$out/tiny.textproto" --set log.run_directory="$directory" "$@"
}
losses() {  # step, loss, gradient norm
  sed -nE 's/.*"step":([0-9]+),.*"train\/loss":([^,]+),"train\/grad_norm":([^,]+),.*/\1 \2 \3/p' "$out/run-$1/metrics.jsonl"
}
# same_losses RUN REFERENCE: the mean loss of every ten steps is the reference's within 1 %.
same_losses() {
  paste -d ' ' <(losses "$2") <(losses "$1") | awk -v steps=$curve_steps -v run="$1" -v reference="$2" '
    function off(a, b) { return a > b ? a / b - 1 : 1 - a / b }
    NF != 6 || $1 != $4 { exit 1 }
    { if (off($5, $2) > single) { single = off($5, $2); at = $1 }
      a += $5; b += $2; n++; last = $1 }
    n == 10 || $1 == steps { if (off(a, b) > worst) worst = off(a, b)
      printf "steps to %d: %s %.5f, %s %.5f\n", $1, run, a / n, reference, b / n; a = b = n = 0 }
    END { if (last != steps) { print "the runs differ in length"; exit 1 }
      printf "losses of %d steps %s 1 %%: means of ten steps %.4f %% off, the worst step (%d) %.4f %%\n", last,
             (worst <= 0.01 ? "within" : "differ by more than"), 100 * worst, at, 100 * single
      exit !(worst <= 0.01) }'
}
on_gpu=(--set parallel.device=cuda --set precision.compute=bf16)
gpu_run() { [ "$(losses gpu 2>/dev/null | wc -l)" = $curve_steps ] || train_run gpu 300 "${on_gpu[@]}"; }
curve() {
  train_run cpu 900 --set parallel.device=cpu --set precision.compute=f32 && gpu_run && same_losses gpu cpu
}
# The same command twice: every loss and every byte of the checkpoint.
repeat() {
  local file
  gpu_run && train_run again 300 "${on_gpu[@]}" || return
  diff <(losses gpu) <(losses again) >/dev/null || { echo "the losses of two runs differ"; return 1; }
  for file in "$out"/run-gpu/checkpoints/step-*/shards/*.safetensors; do
    cmp "$file" "${file/run-gpu/run-again}" || { echo "checkpoints differ"; return 1; }
  done
  echo "losses and checkpoint: the same bits within $curve_steps steps"
}
# Two ranks, on one GPU where there is no other.
mesh() {
  local launcher=(mpirun -n 2)
  gpu_run && train_run "$1-2" 300 "${on_gpu[@]}" --set "parallel.$1=2" --set parallel.microbatch_size=1 && same_losses "$1-2" gpu
}
rm -rf "$out"/run-*
if [ -n "$data" ]; then
  run curve curve 0 curve
  run repeat repeat 0 repeat
  for mesh in tp pp dp; do run mesh "mesh-$mesh-2" 0 mesh $mesh; done
else
  for step in curve repeat mesh; do skip $step $step "no text: give --data PREFIX, or install dict-gcide"; done
fi

# Speed.
for shape in "${kernel_shapes[@]}"; do
  IFS=' ' read -r preset batch seq filter <<<"$shape"
  run kernels "kernels-$preset-$seq" 240 $program bench kernels --preset "$preset" --batch "$batch" --seq "$seq" --dtype bf16 --device cuda \
    ${filter:+--filter "$filter"} --overwrite --json "$out/kernels-$preset-$seq.json"
done
for shape in "${train_shapes[@]}"; do
  read -r preset batch seq <<<"$shape"
  against=() budget=240
  if [ -n "$peer" ] && [[ $preset != llama* ]]; then
    command=${peer//'{preset}'/${preset#transxssm-}}
    command=${command//'{batch}'/$batch}
    command=${command//'{seq}'/$seq}
    against=(--against "LD_LIBRARY_PATH='$library_path'; export LD_LIBRARY_PATH; $command")
    budget=900
  fi
  run train "train-$preset-$seq" $budget $program bench train --preset "$preset" --batch "$batch" --seq "$seq" --dtype bf16 --device cuda \
    "${train_options[@]}" ${against[@]+"${against[@]}"} --overwrite --json "$out/train-$preset-$seq.json"
done

# One table of each. The benchmarks' last line of output is their JSON.
figure() { sed -nE "s/^\\{.*\"$2\":([0-9.eE+-]+).*/\\1/p" "$out/$1.log" | tail -n 1; }
{
  if wanted train; then
    printf '\n## Training, bf16\n\n| model | batch x tokens | tokens/s | %% of peak (MFU) | ratio to the peer |\n|---|---|---|---|---|\n'
    for shape in "${train_shapes[@]}"; do
      read -r preset batch seq <<<"$shape"
      name=train-$preset-$seq
      speed=$(figure "$name" tokens_per_s 2>/dev/null)
      [ -z "$speed" ] || printf '| %s | %s x %s | %.0f | %.1f | %s |\n' "$preset" "$batch" "$seq" "$speed" \
        "$(awk -v f="$(figure "$name" fraction_of_peak)" 'BEGIN { print 100 * f }')" "$(figure "$name" ratio)"
    done
  fi
  if wanted kernels; then
    printf '\n## Operations, bf16\n\n| shape | operation | us | GB/s | GFLOP/s | floor us | of floor |\n|---|---|---|---|---|---|---|\n'
    for shape in "${kernel_shapes[@]}"; do
      read -r preset batch seq _ <<<"$shape"
      sed -nE "s/^(.+[^ ]) +([0-9.]+) +([0-9.]+) +([0-9.]+) +([0-9.]+) +([0-9]+%)\$/| $preset $batch x $seq | \\1 | \\2 | \\3 | \\4 | \\5 | \\6 |/p" \
        "$out/kernels-$preset-$seq.log" 2>/dev/null
    done
  fi
  printf '\n%s\n' "$passed passed, $failed failed, $skipped skipped"
} >>"$report"
for name in ${failures[@]+"${failures[@]}"}; do
  { printf '\n## %s failed\n\n```\n' "$name"; tail -n 30 "$out/$name.log"; printf '```\n'; } >>"$report"
done
rm -rf "$out"/run-*/checkpoints "$out/text.txt"
echo "report: $report"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] && [ $passed -gt 0 ]
