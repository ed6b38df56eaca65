#!/usr/bin/env python3
"""Carries small models with random weights from Hugging Face transformers through a checkpoint and back.

    tests/interop/hugging_face.py BUILD_DIR

For each kind and file format: import-hf, export-hf; the tensors come back byte for byte, transformers loads the export
and computes the original's logits, and `transxssm generate` writes the same greedy tokens. Llama and Mamba-2 models are
made by transformers itself, the others by launch/hf. Exit code: 0 passed, 77 skipped, else failed.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRATCH = tempfile.TemporaryDirectory(prefix="transxssm-interop-")
os.environ.update(HF_HOME=SCRATCH.name, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

try:
    import torch
    import transformers
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
except ImportError as error:
    print(f"skipped: {error}; tests/run.sh --interop installs what is needed")
    sys.exit(77)

VOCABULARY, NEW_TOKENS = 331, 20  # of the models; the tokenizer has a few tokens less
PROMPT = "A layer kind is the operation, one leaf in the model"
failures = 0


def check(name, good, detail=""):
    global failures
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'} {name} {detail}", flush=True)


def transxssm(*arguments):
    result = subprocess.run([TOOL, *arguments], capture_output=True, timeout=60)
    if result.returncode:
        command = " ".join(arguments[:2])
        raise RuntimeError(f"transxssm {command}: exit code {result.returncode}: {result.stderr.decode().strip()}")
    return result.stdout.decode()


HYBRID = {
    "model_type": "transxssm",
    "auto_map": {
        "AutoConfig": "configuration_transxssm.TransXSSMConfig",
        "AutoModelForCausalLM": "modeling_transxssm.TransXSSMForCausalLM",
    },
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "attn_layer_period": 4,
    "attn_layer_offset": 2,
    "ssd_state_size": 32,
    "ssd_chunk_size": 8,
}
JAMBA = HYBRID | {
    "attention_position": "none",
    "ssd_position": "conv1d",
    "ssd_gate": True,
    "ssd_skip": True,
    "ssd_expand": 2,
    "ssd_num_groups": 2,
    "learned_residual": False,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
MAMBA2 = {
    "model_type": "mamba2",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_heads": 8,
    "head_dim": 16,
    "state_size": 32,
    "n_groups": 1,
    "expand": 2,
    "chunk_size": 8,
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": True,
}
SCALED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "head_dim": 24,
    "attention_bias": True,
    "mlp_bias": True,
    "rope_theta": 1000.0,
    "rope_scaling": SCALED | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
CASES = {  # name -> config.json, dtype of the weights, in shards
    "transxssm": (HYBRID, "float32", False),
    "transxssm, KV and groups 2, untied, pattern": (
        HYBRID
        | {"num_key_value_heads": 2, "ssd_num_groups": 2, "tie_word_embeddings": False, "layer_pattern": "SAAS"},
        "float32",
        False,
    ),
    "transxssm, yarn, log-n": (HYBRID | {"rope_scaling": SCALED, "log_n_scale": True}, "float32", False),
    "transxssm, dynamic": (HYBRID | {"rope_scaling": SCALED | {"rope_type": "dynamic"}}, "float32", False),
    "transxssm, llama3's frequencies, wide heads, biases": (HYBRID | LLAMA3, "float32", False),
    "transxssm, decay alone": (HYBRID | {"ssd_position": "none", "attention_position": "none"}, "float32", False),
    "jamba": (JAMBA, "float32", False),
    "jamba in bfloat16": (JAMBA, "bfloat16", False),
    "llama": (LLAMA, "float32", False),
    "llama 3": (LLAMA | LLAMA3, "float32", False),
    "llama with narrow heads": (LLAMA | {"head_dim": 8, "tie_word_embeddings": True}, "float32", False),
    "llama in float16, in shards": (LLAMA, "float16", True),
    "mamba2": (MAMBA2, "float32", False),
    "mamba2 in bfloat16, in shards": (MAMBA2 | {"n_groups": 4}, "bfloat16", True),
}


def make_model(folder, config, dtype, in_shards, tokenizer_file):
    """Saves a model with random weights that writes plain text only, so that texts can be compared."""
    ours = config["model_type"] == "transxssm"
    os.mkdir(folder)
    shutil.copy(tokenizer_file, os.path.join(folder, "tokenizer.json"))
    if ours:
        for name in ("cache_transxssm.py", "configuration_transxssm.py", "modeling_transxssm.py"):
            shutil.copy(os.path.join(ROOT, "launch", "hf", name), folder)
    no_special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config | no_special | {"vocab_size": VOCABULARY, "initializer_range": 0.1}, file)
    loaded = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=ours)
    model = transformers.AutoModelForCausalLM.from_config(loaded, trust_remote_code=ours)
    tokenizer = Tokenizer.from_file(tokenizer_file)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms, residual weights, A_log, dt_bias, D, biases: none left at one or zero
                parameter.add_(0.2 * torch.randn_like(parameter))
        for token in range(VOCABULARY):
            text = tokenizer.decode([token])
            if not (text and text.isascii() and text.isprintable()):
                model.get_output_embeddings().weight[token] = 0
    state = model.to(getattr(torch, dtype)).state_dict()
    if model.config.tie_word_embeddings:  # not every release leaves it out itself
        del state["lm_head.weight"]
    model.save_pretrained(folder, state_dict=state, max_shard_size="30KB" if in_shards else "1GB")
    if in_shards != os.path.exists(os.path.join(folder, "model.safetensors.index.json")):
        raise RuntimeError(f"{folder}: transformers did not write {'shards' if in_shards else 'one file'}")


def tensors_of(folder):
    files = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(os.path.join(folder, file)).items()}


def difference(expected, actual):
    """Names the first tensors that are not the same, byte for byte; empty where all are."""
    if expected.keys() != actual.keys():
        return f"names differ: {sorted(expected.keys() ^ actual.keys())[:4]}"
    wrong = []
    for name, tensor in expected.items():
        other = actual[name]
        same = tensor.dtype == other.dtype and tensor.shape == other.shape
        if not same or not torch.equal(tensor.flatten().view(torch.uint8), other.flatten().view(torch.uint8)):
            wrong.append(name)
    return f"{len(wrong)} tensors differ: {wrong[:4]}" if wrong else ""


def load(folder):
    """The model in float32; every parameter must come from the file."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise RuntimeError(f"{folder}: {kind}: {sorted(report[kind])[:4]}")
    return model.eval()


def round_trip(name, config, dtype, in_shards, tokenizer_file):
    torch.manual_seed(20)
    scratch = tempfile.mkdtemp(dir=SCRATCH.name)
    original, run, export = (os.path.join(scratch, part) for part in ("original", "run", "export"))
    make_model(original, config, dtype, in_shards, tokenizer_file)
    transxssm("checkpoint", "import-hf", original, run)
    transxssm("checkpoint", "export-hf", os.path.join(run, "checkpoints", "step-000000000"), export)
    before, after = tensors_of(original), tensors_of(export)
    wrong = difference({key: tensor.float() for key, tensor in before.items()}, after)
    if dtype == "bfloat16":
        transxssm("checkpoint", "export-hf", run, export + "-bf16", "--dtype", "bf16")
        wrong = wrong or difference(before, tensors_of(export + "-bf16"))
    check(f"{name}: {len(before)} tensors", not wrong, wrong)

    expected, actual = load(original), load(export)
    with open(os.path.join(export, "config.json")) as file:
        model_type = json.load(file)["model_type"]
    check(f"{name}: model_type {model_type}", model_type == config["model_type"])
    ids = torch.randint(VOCABULARY, (2, 37))
    with torch.no_grad():
        expected_logits, logits = expected(ids).logits, actual(ids).logits
    error = ((logits - expected_logits).abs().max() / expected_logits.abs().max()).item()
    check(f"{name}: logits", error < 1e-5, f"error {error:.1e} of the largest")

    tokenizer = transformers.AutoTokenizer.from_pretrained(export, trust_remote_code=True)
    prompt = torch.tensor([Tokenizer.from_file(tokenizer_file).encode(PROMPT).ids])
    same_ids = tokenizer(PROMPT, return_tensors="pt").input_ids.tolist() == prompt.tolist()
    check(f"{name}: tokenizer", same_ids)
    output = actual.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)[0, prompt.shape[1] :]
    expected_text = PROMPT + tokenizer.decode(output, clean_up_tokenization_spaces=False)
    text = transxssm(
        *("generate", "--checkpoint", run, "--prompt", PROMPT, "--max-tokens", str(NEW_TOKENS), "--temperature", "0")
    ).removesuffix("\n")
    detail = repr(text[len(PROMPT) :])
    if text != expected_text:
        detail += f" instead of {expected_text[len(PROMPT):]!r}"
    check(f"{name}: {len(output)} greedy tokens", text == expected_text and len(output) == NEW_TOKENS, detail)
    shutil.rmtree(scratch)


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer_file = os.path.join(SCRATCH.name, "tokenizer.json")
    transxssm(
        *("data", "train-tokenizer", "--input", os.path.join(ROOT, "CONTRIBUTING.md")),
        *("--vocab-size", str(VOCABULARY - 11), "--output", tokenizer_file),
    )
    for name, case in CASES.items():
        try:
            round_trip(name, *case, tokenizer_file)
        except Exception as error:  # the other cases still run
            check(name, False, f"{type(error).__name__}: {error}")
    print(f"{failures} failed")
    return bool(failures)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    TOOL = os.path.join(sys.argv[1], "transxssm")
    sys.exit(main())
