#!/usr/bin/env bash
# `transxssm bench train` on two ranks, beside a peer; `bench length`. Usage: bench_test.sh SOURCE_TREE PROGRAM
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $1" >&2; cat "$work/out" >&2; exit 1; }

# shellcheck disable=SC2016  # the peer's own
"$1"/launch/run.sh -n 2 --program "$2" -- bench train --preset tiny --batch 4 --seq 32 --steps 2 --rounds 2 \
  --against 'echo run >>'"$work/peer"'; echo "{\"tokens_per_s\": 100}"' \
  --set parallel.tp=2 --set model.num_layers=2 --set model.vocab_size=128 --device cpu \
  --json "$work/result.json" --trace "$work/trace.json" >"$work/out" 2>&1 || fail "exit code $?"
[ "$(wc -l <"$work/peer")" = 2 ] || fail "the peer ran $(wc -l <"$work/peer") times instead of twice"
[ "$(grep -c '^bench train tiny' "$work/out")" = 1 ] || fail "the ranks did not speak with one voice"
grep -q 'tp 2' "$work/out" || fail "no mesh"
grep -q '^tokens/s .* of 2 pairs in turn' "$work/out" && grep -q '^ratio ' "$work/out" || fail "no ratio"
grep -q '"tokens_per_s": [1-9]' "$work/result.json" || fail "no speed in result.json"
for rank in 0 1; do grep -q "\"rank $rank on " "$work/trace.json" || fail "rank $rank is not in the trace"; done
if "$1"/launch/run.sh -n 2 --program "$2" -- bench kernels --preset tiny >"$work/out" 2>&1; then fail "two ranks"; fi
grep -q 'bench kernels runs as one process' "$work/out" || fail "no reason for refusing two ranks"

"$2" bench length --preset tiny --baseline llama-tiny --tokens 64 --seq 16,32,64 --set model.num_layers=2 \
  --set model.vocab_size=128 --device cpu --json "$work/length.json" --plot "$work/length.svg" >"$work/out" 2>&1 ||
  fail "bench length: exit code $?"
grep -q '^memory .*llama-tiny: ' "$work/out" || fail "no check of memory"
grep -q '</svg>' "$work/length.svg" || fail "no plot"
if "$2" bench length --seq 16,3x,64 >"$work/out" 2>&1; then fail "a length that is no number"; fi
grep -q '"3x" in "16,3x,64" is not a whole number' "$work/out" || fail "no reason for refusing 3x"
echo "bench_test: passed"
