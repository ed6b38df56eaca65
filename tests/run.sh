#!/usr/bin/env bash
# Installs what is missing, builds, runs every test, and ends with one line: N passed, N failed[, N skipped].
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: tests/run.sh [--label unit|mpi|slow]... [--program NAME]... [--interop[=oldest|=latest]] [--build DIR] [--preset NAME]
  --label    only tests of this label (default: all, unit first)
  --program  builds and runs only this program of tests, like test_parallel
  --interop  also tests/interop: other projects' readers and writers, from PyPI, in a virtual environment in the build
             folder; without it they count as skipped. Of the releases in tests/interop/requirements.txt; =oldest: with
             those of oldest.txt instead; =latest: of the newest on PyPI
  --build    build folder (default: build)
  --preset   CMake preset: cpu (default), asan, tsan
EOF
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=
preset=cpu
interop=
labels=()
programs=()
while [ $# -gt 0 ]; do
  case $1 in
    --label) labels+=("${2:?--label needs unit, mpi or slow}"); shift 2 ;;
    --program) programs+=("${2:?--program needs a name like test_parallel}"); shift 2 ;;
    --build) build=${2:?--build needs a folder}; shift 2 ;;
    --preset) preset=${2:?--preset needs a name}; shift 2 ;;
    --interop) interop=pinned; shift ;;
    --interop=oldest | --interop=latest) interop=${1#*=}; shift ;;
    --help | -h) usage; exit 0 ;;
    *) echo "tests/run.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done
case $preset in
  cpu) : "${build:=$root/build}" ;;
  asan | tsan) : "${build:=$root/build-$preset}" ;;
  *) echo "tests/run.sh: unknown preset $preset; there are cpu, asan, tsan" >&2; exit 2 ;;
esac
for label in ${labels[@]+"${labels[@]}"}; do
  case $label in
    unit | mpi | slow) ;;
    *) echo "tests/run.sh: unknown label $label; there are unit, mpi, slow" >&2; exit 2 ;;
  esac
done

passed=0 failed=0 skipped=0
failures=()
outputs=()  # what the first of them printed last
# Whatever happens, the last line says how it went, and the lines before it what failed.
# shellcheck disable=SC2154  # line, status are set inside
trap 'status=$?
      [ $status = 0 ] || [ $failed -gt 0 ] || failed=1
      if [ $((passed + failed + skipped)) = 0 ]; then
        echo "tests/run.sh: no test was found" >&2
        failed=1
      fi
      [ ${#outputs[@]} = 0 ] || printf "%s\n" "${outputs[@]}"
      [ ${#failures[@]} = 0 ] || printf "FAILED %s\n" "${failures[@]}"
      line="$passed passed, $failed failed"
      [ $skipped = 0 ] || line="$line, $skipped skipped"
      echo "$line"
      [ $failed = 0 ] || exit 1' EXIT

dependencies=()
if [ -n "$interop" ]; then dependencies=(--interop); fi
"$root/launch/install-deps.sh" ${dependencies[@]+"${dependencies[@]}"}
cd "$root"
mkdir -p "$build"
build=$(cd "$build" && pwd)
cmake --preset "$preset" -B "$build" >"$build.configure.log" 2>&1 || { cat "$build.configure.log"; exit 1; }
rm -f "$build.configure.log"
cmake --build "$build" ${programs[@]+--target "${programs[@]}"}

# Sanitizers: what libraries keep or order in their own ways is not reported; everything else ends the test.
case $preset in
  asan)
    export ASAN_OPTIONS=strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1 ;;
  tsan)
    export TSAN_OPTIONS="suppressions=$root/tests/support/races.supp:ignore_noninstrumented_modules=1:halt_on_error=1"
    export OMP_NUM_THREADS=1 ;;  # the OpenMP runtime itself is not instrumented
esac
[ "$preset" = cpu ] || export TEST_WATCHDOG_SECONDS=${TEST_WATCHDOG_SECONDS:-1000}
# Tests run side by side; threads that spin while they wait would take one another's cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=passive

# Their names, without the bytes of parameters that gtest adds. A skipped test is no failure.
failed_tests() {
  grep -E -A 1 '<testcase .*status="(fail|notrun|disabled)"' "$1" | awk '
    /<testcase / { name = $0; sub(/.*<testcase name="/, "", name); sub(/(  # GetParam.*|".*)/, "", name); next }
    name != "" { if ($0 !~ /message="SKIP_/) print name; name = "" }' || true
}

# The last lines of what the first failed tests printed: a log is read from its end.
failed_output() {
  awk '
    /<testcase / { failed = /status="fail"/; name = $0; sub(/.*<testcase name="/, "", name); sub(/".*/, "", name); inside = 0 }
    failed && sub(/.*<system-out>/, "") { inside = 1; count = 0 }
    inside {
      ends = sub(/<\/system-out>.*/, "")
      gsub(/&lt;/, "<"); gsub(/&gt;/, ">"); gsub(/&quot;/, "\""); gsub(/&apos;/, "\047"); gsub(/&amp;/, "\\&")
      lines[++count] = $0
      if (ends && ++shown <= 10) {
        print "---- " name
        for (i = count > 25 ? count - 24 : 1; i <= count; ++i) print lines[i]
      }
      if (ends) inside = 0
    }' "$1" || true
}

# Runs ctest on what the arguments select and adds up its JUnit file. Tests that could not start count as failed.
run_tests() {
  local name=$1 junit=$build/junit-$1.xml total_skipped total total_failed status=0
  shift
  rm -f "$junit"
  ctest --test-dir "$build" --output-junit "$junit" --output-on-failure --progress -j "$(nproc)" "$@" || status=$?
  if [ ! -s "$junit" ]; then
    failed=$((failed + 1))
    failures+=("$name: ctest wrote no results")
    return
  fi
  total=$(grep -c '<testcase ' "$junit" || true)
  total_skipped=$(grep -c 'message="SKIP_' "$junit" || true)
  total_failed=$(grep -E '<testcase .*status="(fail|notrun|disabled)"' "$junit" | grep -c . || true)
  total_failed=$((total_failed - total_skipped))
  if [ $status != 0 ] && [ $total_failed -le 0 ]; then
    total_failed=1 total=$((total + 1))
    failures+=("$name: ctest exit code $status")
  fi
  while read -r test; do failures+=("$name: $test"); done < <(failed_tests "$junit")
  [ "$total_failed" = 0 ] || outputs+=("$(failed_output "$junit")")
  passed=$((passed + total - total_skipped - total_failed))
  failed=$((failed + total_failed))
  skipped=$((skipped + total_skipped))
  [ "$total" = 0 ] || echo "$name: $total tests, $total_failed failed, $total_skipped skipped"
}

# Runs one program, all of its tests in one process, and adds them up.
run_program() {
  local results=$build/$1.xml status=0 total total_failed total_skipped
  rm -f "$results"
  "$build/$1" --gtest_brief=1 --gtest_output=xml:"$results" || status=$?
  total=$(sed -n 's/^<testsuites tests="\([0-9]*\)".*/\1/p' "$results" 2>/dev/null || true)
  total_failed=$(sed -n 's/^<testsuites .* failures="\([0-9]*\)".*/\1/p' "$results" 2>/dev/null || true)
  total_skipped=$(grep -c 'result="skipped"' "$results" 2>/dev/null || true)
  if [ $status != 0 ]; then
    failures+=("$1: exit code $status")
    [ "${total_failed:-0}" -gt 0 ] || total_failed=1 total=$((${total:-0} + 1))  # it ended before it wrote them
  fi
  passed=$((passed + total - total_skipped - total_failed))
  failed=$((failed + total_failed))
  skipped=$((skipped + total_skipped))
}

if [ ${#programs[@]} -gt 0 ]; then
  for program in "${programs[@]}"; do run_program "$program"; done
  exit
fi
selected=(unit mpi slow)
[ ${#labels[@]} = 0 ] || selected=("${labels[@]}")
for label in "${selected[@]}"; do
  # What Open MPI and its plugins keep cannot be told from leaks once they are unloaded: those are sought without it.
  [ "$label" = unit ] || export ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0"
  run_tests "$label" -L "^$label\$"
done
[ ${#labels[@]} -gt 0 ] || run_tests other -LE '^(unit|mpi|slow)$'

# install_interop NAME: the virtual environment NAME in the build folder, with Python packages from PyPI. Those of `oldest`
# and `latest` lie over `pinned`, so that what they share is there once.
install_interop() {
  local venv=$build/interop/$1 wanted=$root/tests/interop/requirements.txt site
  [ "$1" = pinned ] || install_interop pinned || return 1
  [ "$1" != oldest ] || wanted=$root/tests/interop/oldest.txt
  # `latest` is looked up every time; the others are there once their file is what was installed.
  if [ "$1" != latest ] && cmp -s "$wanted" "$venv/installed.txt"; then return; fi
  rm -rf "$venv"
  python3 -m venv "$venv" || return 1
  if [ "$1" != pinned ]; then
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "${site/"$venv"/$build/interop/pinned}" >"$site/pinned.pth"
  fi
  if [ "$1" = latest ]; then
    "$venv/bin/python" -m pip install -q --upgrade --upgrade-strategy eager \
      torch transformers tokenizers safetensors numpy tensorboard
  else
    "$venv/bin/python" -m pip install -q -r "$wanted" && cp "$wanted" "$venv/installed.txt"
  fi
}

shopt -s nullglob
scripts=("$root"/tests/interop/*.py)
if [ ${#labels[@]} = 0 ] && [ ${#scripts[@]} -gt 0 ]; then
  if [ -n "$interop" ]; then
    venv=$build/interop/$interop
    install_interop "$interop"
    for script in "${scripts[@]}"; do
      status=0
      tool=$build/$(basename "$script" .py)_tool  # the program that a script drives, if it has one
      [ -x "$tool" ] || tool=$build
      PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" "$script" "$tool" || status=$?
      case $status in
        0) passed=$((passed + 1)) word=passed ;;
        77) skipped=$((skipped + 1)) word=skipped ;;
        *) failed=$((failed + 1)) word="FAILED ($status)"; failures+=("interop: $(basename "$script")") ;;
      esac
      echo "interop: $(basename "$script") $word"
    done
  else
    skipped=$((skipped + ${#scripts[@]}))
    echo "interop: ${#scripts[@]} skipped; tests/run.sh --interop runs them"
  fi
fi
