#!/usr/bin/env bash
# Fuzzes the parsers of foreign bytes and prints a table. Findings are kept in tests/fuzz/findings/<target>/, where the
# test program replays them from then on.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: tests/fuzz/run.sh MINUTES [--inputs N] [--build DIR] [TARGET...]
  MINUTES   for each target; whole or like 0.5
  --inputs  stop a target after so many inputs; MINUTES is then the most it may take
  --build   build folder (default: build-fuzz)
  TARGET    names of tests/fuzz/targets (default: all)
Installs clang where it is missing, builds the targets with it (address and undefined-behaviour sanitizers), and runs them
one after the other from the corpus of earlier runs in DIR/corpus. Ends with a line a target: inputs run, inputs a
second, faults. Exit code 1: a fault.
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$root/build-fuzz
minutes='' inputs=''
chosen=()
while [ $# -gt 0 ]; do
  case $1 in
    --inputs) inputs=${2:?--inputs needs a number}; shift 2 ;;
    --build) build=${2:?--build needs a folder}; shift 2 ;;
    --help | -h) usage; exit 0 ;;
    -*) echo "run.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
    *) if [ -z "$minutes" ]; then minutes=$1; else chosen+=("$1"); fi; shift ;;
  esac
done
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || { usage >&2; exit 2; }
[[ -z $inputs || $inputs =~ ^[0-9]+$ ]] || { echo "run.sh: --inputs $inputs is no number" >&2; exit 2; }
seconds=$(awk -v m="$minutes" 'BEGIN { s = int(60 * m); print s < 1 ? 1 : s }')
targets=()
for source in "$root"/tests/fuzz/targets/*.cc; do targets+=("$(basename "$source" .cc)"); done
for target in ${chosen[@]+"${chosen[@]}"}; do
  [ -f "$root/tests/fuzz/targets/$target.cc" ] || { echo "run.sh: no target $target; there are ${targets[*]}" >&2; exit 2; }
done
[ ${#chosen[@]} = 0 ] || targets=("${chosen[@]}")

"$root/launch/install-deps.sh" --fuzz
mkdir -p "$build"
build=$(cd "$build" && pwd)
cmake -S "$root" -B "$build" -G Ninja -D CMAKE_CXX_COMPILER=clang++ -D CMAKE_BUILD_TYPE=None \
      -D TRANSXSSM_SANITIZE=fuzzer-no-link,address,undefined \
      -D CMAKE_CXX_FLAGS='-O2 -gline-tables-only' >"$build/configure.log" ||
  { cat "$build/configure.log"; exit 1; }
cmake --build "$build" --target "${targets[@]/#/fuzz_}"

# Short stacks and a short quarantine: twice as many inputs a second. What is found is replayed with the longer ones.
export ASAN_OPTIONS=malloc_context_size=2:quarantine_size_mb=16
table=$(printf '%-20s %10s %10s %7s' target inputs 'a second' faults)
faults=0
for target in "${targets[@]}"; do
  corpus=$build/corpus/$target found=$root/tests/fuzz/findings/$target log=$build/$target.log
  mkdir -p "$corpus" "$found"
  before=$(find "$found" -type f | wc -l)
  bytes=$(grep -oE "FUZZ_TARGET\($target, [0-9]+\)" "$root/tests/fuzz/targets/$target.cc" | grep -oE '[0-9]+\)' | tr -d ')')
  # Read from the start on are the findings of earlier runs, not those of this one.
  known=$build/known/$target
  rm -rf "$known"
  mkdir -p "$build/known"
  cp -r "$found" "$known"
  # A fault ends the program; what is left of the time goes on after it, up to three faults.
  end=$((SECONDS + seconds)) run=0 bad=0 began=$SECONDS
  : >"$log"
  while [ $bad -lt 3 ]; do
    left=$((end - SECONDS))
    [ $left -gt 0 ] || break
    limit=()
    [ -z "$inputs" ] || limit=("-runs=$((inputs - run))")
    [ -z "$inputs" ] || [ "$run" -lt "$inputs" ] || break
    status=0
    (cd "$build" && "./fuzz_$target" -max_total_time=$left ${limit[@]+"${limit[@]}"} -max_len="$bytes" \
      -timeout=5 -rss_limit_mb=1024 -malloc_limit_mb=256 -entropic=0 -print_final_stats=1 \
      -artifact_prefix="$found/" "$corpus" "$root/tests/fuzz/seeds/$target" "$known") >"$log.part" 2>&1 || status=$?
    cat "$log.part" >>"$log"
    run=$((run + $(awk '/stat::number_of_executed_units/ { n = $2 } END { print n + 0 }' "$log.part")))
    [ $status != 0 ] || break
    # Seconds on the clock are not those of the processor: an input that is fast when run alone met a busy machine.
    slow=$(sed -n 's/.*Test unit written to \(.*timeout-[0-9a-f]*\)$/\1/p' "$log.part")
    if [ -n "$slow" ] && "$build/fuzz_$target" -timeout=5 "$slow" >>"$log" 2>&1; then
      rm "$slow"
      continue
    fi
    bad=$((bad + 1))
    grep -E '^(FAULT|SUMMARY)|runtime error|ERROR: ' "$log.part" | head -3 || tail -3 "$log.part"
  done
  rm -f "$log.part"
  find "$found" -maxdepth 0 -empty -delete
  faults=$((faults + bad))
  took=$((SECONDS - began))
  table+=$'\n'$(printf '%-20s %10d %10d %7d' "$target" "$run" $((run / (took > 0 ? took : 1))) "$bad")
  [ "$bad" = 0 ] || echo "$target: $(($(find "$found" -type f 2>/dev/null | wc -l) - before)) new files in ${found#"$root"/}, log $log"
done
echo "$table"
[ $faults = 0 ]
