#!/usr/bin/env bash
# Models from and to the folders of Hugging Face, as users find them.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A run of a Llama whose model section has these fields besides; exported to `exported`.
exported_llama() {
  tokens || return 1
  cat >llama.textproto <<CONFIG
model { vocab_size: 300 d_model: 16 num_layers: 2 num_heads: 2 d_ff: 32 attn_period: 1 attn_offset: 0
        learned_residual: false $1 }
data { train { prefix: "train" } tokenizer: "tok.json" sequence_length: 32 }
schedule { steps: 3 }
parallel { global_batch: 4 }
log { run_directory: "run" every_steps: 1 }
precision { compute: "f32" }
CONFIG
  run "$program" train --config llama.textproto
  expect 0
  run "$program" checkpoint export-hf run exported
  expect 0 "model_type llama"
}
# import_refused TEXT...: the folder `exported` is refused in these words, and nothing is made.
import_refused() {
  run "$program" checkpoint import-hf exported again
  expect 4 "$@"
  expect_not $'\e' $'\xc2\x9b'
  [ ! -e again ] || wrong "a run directory was made"
}

# Heads wider and narrower than d_model / num_heads, the frequencies of Llama 3, biases: there and back.
case_llama_3_comes_back() {
  exported_llama "head_dim: 12 num_kv_heads: 1 attention_bias: true mlp_bias: true rope_base: 5e5
    rope_scaling: 'llama3' rope_scaling_factor: 8 rope_original_length: 16 max_position_embeddings: 128"
  for text in '"head_dim": 12' '"attention_bias": true' '"mlp_bias": true' '"rope_type": "llama3"' \
    '"low_freq_factor": 1.0' '"high_freq_factor": 4.0' '"original_max_position_embeddings": 16'; do
    grep -qF -- "$text" exported/config.json || wrong "config.json lacks $text"
  done
  run "$program" checkpoint import-hf exported again
  expect 0
  "$program" generate --checkpoint run --prompt "Entry 7. The" --max-tokens 24 --temperature 0 >before.txt 2>/dev/null
  "$program" generate --checkpoint again --prompt "Entry 7. The" --max-tokens 24 --temperature 0 >after.txt 2>/dev/null
  [ -s before.txt ] && cmp before.txt after.txt || wrong "the imported model writes other text"
}

case_unknown_frequencies_are_named() {
  exported_llama ""
  sed -i 's/"rope_scaling": null/"rope_scaling": {"rope_type": "longrope", "factor": 2.0}/' exported/config.json
  import_refused 'rope_scaling.rope_type: "longrope" is not known' "default, linear, dynamic, yarn, llama3"
}

case_the_head_is_not_in_the_file() {
  exported_llama ""
  sed -i 's/"tie_word_embeddings": true/"tie_word_embeddings": false/' exported/config.json
  import_refused "lm_head.weight is missing" "tie_word_embeddings: true"
}

case_text_of_files_cannot_act_on_the_terminal() {
  exported_llama ""
  cp exported/config.json config.json
  sed -i 's/"model_type": "llama"/"model_type": "\\u001b[2J\xc2\x9b31m"/' exported/config.json
  import_refused "model_type"
  printf '{"model_type": \e[2J}' >exported/config.json
  import_refused "config.json:1:" "is not JSON"
  cp config.json exported/config.json
  rm exported/model.safetensors
  printf '{"weight_map": {"\xc2\x9b31m": "\xc2\x9b31m.safetensors"}}' >exported/model.safetensors.index.json
  import_refused "31m.safetensors"
}

case_files_nested_deep_are_refused() {
  exported_llama ""
  cp exported/config.json config.json
  { printf '{"model_type": "llama", "x": '; head -c 500000 /dev/zero | tr '\0' '['; } >exported/config.json
  import_refused "config.json" "nested more than"
  cp config.json exported/config.json
  rm exported/model.safetensors
  { printf '{"metadata": '; head -c 20000000 /dev/zero | tr '\0' '['; } >exported/model.safetensors.index.json
  import_refused "index.json" "nested more than"
  printf '{"weight_map": {"a": "../exported/model.safetensors"}}' >exported/model.safetensors.index.json
  import_refused "not a file name"
}

run_cases "$@"
