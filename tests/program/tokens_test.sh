#!/usr/bin/env bash
# Token files, blends and validation as a user meets them.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# megatron NAME DTYPE FORMAT LENGTHS...: a dataset as Megatron-LM writes it, one sequence a document; ids 1, 2, ... 99.
megatron() {
  python3 - "$@" <<'PYTHON'
import struct, sys
name, dtype, form, lengths = sys.argv[1], int(sys.argv[2]), sys.argv[3], [int(x) for x in sys.argv[4:]]
ids = [1 + i % 99 for i in range(sum(lengths))]
size = struct.calcsize(form)
with open(name + '.bin', 'wb') as f: f.write(struct.pack('<%d%s' % (len(ids), form), *ids))
offsets, at = [], 0
for n in lengths: offsets.append(at); at += n * size
with open(name + '.idx', 'wb') as f:
    f.write(b'MMIDIDX\0\0' + struct.pack('<QBQQ', 1, dtype, len(lengths), len(lengths) + 1))
    f.write(struct.pack('<%di' % len(lengths), *lengths) + struct.pack('<%dq' % len(lengths), *offsets))
    f.write(struct.pack('<%dq' % (len(lengths) + 1), *range(len(lengths) + 1)))
PYTHON
}

# sources FILE TEXT: puts TEXT in the place of the configuration's one source.
sources() { sed -i "s/train { prefix: \"train\" }/$2/" "$1"; }

case_another_tokenizer_is_refused() {
  tokens || return
  config c.textproto 4
  "$program" data train-tokenizer --input corpus.txt --vocab-size 300 --pattern cl100k --output other.json >setup.log 2>&1
  run "$program" train --config c.textproto --set data.tokenizer=other.json
  expect 3 "train was made with the tokenizer" "tok.json (digest " "data.tokenizer is other.json (digest "
  [ ! -e run/checkpoints/step-000000003 ] || wrong "it trained"
  run "$program" data inspect train --tokenizer other.json
  expect 0 "was made with another tokenizer"
  # The same tokenizer in another layout is the same.
  python3 -c "import json; json.dump(json.load(open('tok.json')), open('dense.json', 'w'))"
  run "$program" train --config c.textproto --set data.tokenizer=dense.json
  expect 0 "done: 4 steps"
  expect_not "warning"
  # A dataset that does not say which tokenizer made it is taken, with a word.
  rm train.json
  run "$program" train --config c.textproto --set data.tokenizer=other.json --set log.run_directory=again
  expect 0 "train does not say which tokenizer made it; other.json is taken for it"
}

case_empty_documents_anywhere() {
  config c.textproto 2
  # shellcheck disable=SC2046  # numbers
  megatron end 8 H $(yes 40 | head -60) 0 0
  megatron inside 4 i 0 0 50 0 900 0 0 50 0
  megatron none 8 H 0 0 0
  local name
  for name in end inside; do
    run "$program" train --config c.textproto --set data.tokenizer= --set data.train=$name --set log.run_directory=$name
    expect 0 "done: 2 steps"
  done
  run "$program" train --config c.textproto --set data.tokenizer= --set data.train=none --set log.run_directory=none-run
  expect 3 "none has no tokens: all its 3 documents are empty"
}

case_every_integer_type() {
  config c.textproto 2
  local type losses=
  for type in "1 B" "2 b" "3 h" "4 i" "5 q" "8 H"; do
    # shellcheck disable=SC2086  # two words
    megatron "d${type% *}" $type 400 300 500
    run "$program" train --config c.textproto --set data.tokenizer= --set "data.train=d${type% *}" --set "log.run_directory=r${type% *}"
    expect 0 "done: 2 steps"
    losses+="$(grep -o 'loss [0-9.]*' "$output" | tail -1)"$'\n'
  done
  [ "$(sort -u <<<"$losses" | grep -c .)" = 1 ] || wrong "the losses differ: $losses"
  megatron float 6 d 40 40
  run "$program" train --config c.textproto --set data.tokenizer= --set data.train=float
  expect 3 "float.idx: dtype is 6, floating point"
}

case_a_side_file_of_any_kind() {
  tokens || return
  config c.textproto 2
  local n=0 what
  for what in '{"tokens": 1e300' '{"index_digest": 1, "tokens": -1}' "$(printf '[%.0s' $(seq 5000))"; do
    printf '%s' "$what" >train.json
    n=$((n + 1))
    run "$program" train --config c.textproto --set log.run_directory=run$n
    expect 0 "train.json is not used: " "done: 2 steps"
  done
  rm train.json && mkdir train.json
  run "$program" data inspect train
  expect 0 "train.json is not used: "
}

case_a_tiny_weight_gets_its_share() {
  megatron wa 8 H 4000
  megatron wb 8 H 4000
  config c.textproto 2
  sources c.textproto 'train { prefix: "wa" } train { prefix: "wb" weight: 1e-9 } validation_fraction: 0'
  run "$program" train --config c.textproto --set data.tokenizer=
  expect 0 "done: 2 steps" "data.train[1] (wb) has weight 1e-09, so small that none of the 8 rows of this run is its"
}

case_a_blend_is_validated_by_source() {
  tokens || return
  cp train.bin other.bin && cp train.idx other.idx && cp train.json other.json
  config c.textproto 4
  sources c.textproto 'train { prefix: "train" } train { prefix: "other" weight: 3 } validation_fraction: 0.1'
  run "$program" train --config c.textproto --set log.validation_rows=4
  expect 0 "validation at step 3: " "; train " ", other " "validation at step 4, all rows: "
  grep -q '"eval/loss/other"' run/metrics.jsonl || wrong "no loss of a source in the metrics"
  python3 - <<'PYTHON' || wrong "the curve and the final figure are not apart"
import json
records = [json.loads(line) for line in open('run/metrics.jsonl')]
curve = [r['step'] for r in records if 'eval/loss' in r]
final = [r['step'] for r in records if 'eval/final_loss' in r]
assert curve == [3, 4] and final == [4], (curve, final)
PYTHON
  grep -q "final validation" run/report.html || wrong "the report does not show the final figure"
}

case_a_signal_stops_a_long_final_validation() {
  tokens || return
  config c.textproto 2
  # 400 documents are few: many rows of 2 tokens.
  "$program" train --config c.textproto --set data.validation=train --set data.sequence_length=2 --set parallel.global_batch=1 \
    --set log.run_directory=long >"$output" 2>&1 &
  local job=$!
  for _ in $(seq 300); do
    grep -q "saved long/checkpoints/step-000000002" "$output" && break
    sleep 0.05
  done
  kill -TERM $job
  status=0
  wait $job || status=$?
  expect 75 "the validation stops after"
  run "$program" train --config long/config.textproto --set log.final_validation_rows=4
  expect 0 "validation at step 2, final: "
}

run_cases "$@"
