#!/usr/bin/env python3
"""`generate` of the models in launch/hf, with the installed release of transformers: a cache changes no token, and one
that is lost on the way, or is not that of the tokens, is an error.

    tests/interop/generation.py

Exit code: 0 passed, 77 skipped, else failed.
"""
import json
import os
import shutil
import sys
import tempfile
import warnings

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRATCH = tempfile.TemporaryDirectory(prefix="transxssm-interop-")
os.environ.update(HF_HOME=SCRATCH.name, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

try:
    import torch
    import transformers
except ImportError as error:
    print(f"skipped: {error}; tests/run.sh --interop installs what is needed")
    sys.exit(77)

VOCABULARY, TOKENS, NEW_TOKENS = 97, 23, 14
failures = 0

TRANSXSSM = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "ssd_state_size": 32,
    "ssd_chunk_size": 8,
    "initializer_range": 0.2,
}
JAMBA = {"attention_position": "none", "ssd_position": "conv1d", "ssd_gate": True, "ssd_skip": True, "ssd_expand": 2}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 16}
MODELS = {
    "transxssm": TRANSXSSM,
    "transxssm, dynamic": TRANSXSSM | {"rope_scaling": DYNAMIC, "log_n_scale": True},
    "jamba": TRANSXSSM | JAMBA,
}


def check(name, good, detail=""):
    global failures
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'} {name} {detail}", flush=True)


def refused(name, call, *words):
    """The call must raise, with these words; what it returns is of no interest."""
    try:
        call()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        check(name, all(word in str(error) for word in words), f"{type(error).__name__}: {error}")
    else:
        check(name, False, "was not refused")


def make_model(fields):
    folder = tempfile.mkdtemp(dir=SCRATCH.name)
    for file in os.listdir(os.path.join(ROOT, "launch", "hf")):
        if file.endswith(".py"):
            shutil.copy(os.path.join(ROOT, "launch", "hf", file), folder)
    auto_map = {
        "AutoConfig": "configuration_transxssm.TransXSSMConfig",
        "AutoModelForCausalLM": "modeling_transxssm.TransXSSMForCausalLM",
    }
    no_special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump({"model_type": "transxssm", "auto_map": auto_map, "vocab_size": VOCABULARY} | fields | no_special, file)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    torch.manual_seed(20)
    return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True).eval()


def same_tokens(name, model, ids, **options):
    """Generates with the cache and without; the tokens must be the same. Returns them."""
    run = [model.generate(ids, max_new_tokens=NEW_TOKENS, pad_token_id=0, use_cache=use_cache, **options)
           for use_cache in (True, False)]
    check(name, torch.equal(*run), "" if torch.equal(*run) else f"{run[0].tolist()}, without a cache {run[1].tolist()}")
    return run[0]


def tokens_are_the_same(name, model):
    ids = torch.randint(1, VOCABULARY, (3, TOKENS))
    options = {"do_sample": False}
    plain = same_tokens(f"{name}: greedy", model, ids, **options)
    same_tokens(f"{name}: beams", model, ids, num_beams=3, **options)
    torch.manual_seed(5)
    chunks = model.generate(ids, max_new_tokens=NEW_TOKENS, pad_token_id=0, prefill_chunk_size=7, **options)
    check(f"{name}: the prompt in chunks", torch.equal(chunks, plain))

    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 11)):
        mask[row, :padding] = 0
    padded = same_tokens(f"{name}: padding", model, ids, attention_mask=mask, **options)
    chunks = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, pad_token_id=0, prefill_chunk_size=4, **options
    )
    check(f"{name}: padding in chunks", torch.equal(chunks, padded))
    documents = torch.zeros_like(ids)
    documents[1, 9:] = 1
    packed = same_tokens(f"{name}: documents", model, ids, document_ids=documents, **options)
    check(f"{name}: documents count", not torch.equal(packed[1], plain[1]))

    # A conversation goes on with the cache that the first answer left.
    first = model.generate(ids, max_new_tokens=NEW_TOKENS, pad_token_id=0, return_dict_in_generate=True,
                           rope_length=60, **options)
    cache = first["cache"] if "cache" in first else first["past_key_values"]
    longer = torch.cat([first["sequences"], torch.randint(1, VOCABULARY, (3, 5))], 1)
    answers = [model.generate(longer, max_new_tokens=NEW_TOKENS, pad_token_id=0, rope_length=60, **further, **options)
               for further in ({"past_key_values": cache}, {"use_cache": False})]
    check(f"{name}: a conversation", torch.equal(*answers))


def step_by_step(name, model):
    """A loop of one's own, with both names of the cache."""
    ids = torch.randint(1, VOCABULARY, (2, TOKENS))
    expected = model(ids, use_cache=False).logits
    for argument in ("cache", "past_key_values"):
        cache, logits = None, []
        for at in range(TOKENS):
            output = model(ids[:, at : at + 1], use_cache=True, rope_length=TOKENS, **{argument: cache})
            cache = output[argument] if argument in output else output.past_key_values
            logits.append(output.logits)
        error = ((torch.cat(logits, 1) - expected).abs().max() / expected.abs().max()).item()
        check(f"{name}: one token after another, {argument}", error < 1e-5, f"error {error:.1e} of the largest")


def lost_caches_are_refused(name, model):
    ids = torch.randint(1, VOCABULARY, (2, TOKENS))
    ones = torch.ones_like(ids)

    def new_cache(length=TOKENS - 1):
        output = model(ids[:, :length], use_cache=True)
        return output["cache"] if "cache" in output else output["past_key_values"]

    last = ids[:, -1:]
    at_last = torch.full_like(last, TOKENS - 1)
    refused(f"{name}: one token, the mask of all", lambda: model(last, attention_mask=ones), "cache was not handed on")
    refused(f"{name}: one token, its position", lambda: model(last, position_ids=at_last), "cache was not handed on")
    refused(f"{name}: one token, its place", lambda: model(last, cache_position=at_last[0]), "cache was not handed on")
    refused(f"{name}: a cache that lags", lambda: model(last, cache=new_cache(9), position_ids=at_last), "after 9")
    refused(f"{name}: a cache that lags, mask", lambda: model(last, cache=new_cache(9), attention_mask=ones), "cache of 9")
    refused(f"{name}: a cache that runs ahead", lambda: model(ids, cache=new_cache(), attention_mask=ones.repeat(1, 3)))
    for argument in ("cache_params", "memory", "layer_past"):
        refused(f"{name}: cache as {argument}", lambda: model(last, **{argument: new_cache()}), argument)
    refused(f"{name}: two caches", lambda: model(last, cache=new_cache(), past_key_values=new_cache()), "two caches")
    foreign = transformers.DynamicCache()
    for argument in ("cache", "past_key_values"):
        refused(f"{name}: DynamicCache as {argument}", lambda: model(ids, **{argument: foreign}), "DynamicCache")
    refused(f"{name}: tuples", lambda: model(ids, past_key_values=((ids, ids),)), "tuple")
    refused(f"{name}: generate with DynamicCache",
            lambda: model.generate(ids, past_key_values=foreign, max_new_tokens=3), "DynamicCache")
    refused(f"{name}: generate with a static cache",
            lambda: model.generate(ids, cache_implementation="static", max_new_tokens=3), "static")
    refused(f"{name}: rows of another number", lambda: model(last[:1], cache=new_cache()), "rows")
    refused(f"{name}: crop", lambda: new_cache().crop(5), "taken back")

    mask = ones.clone()
    mask[0, -4:] = 0
    refused(f"{name}: padding behind a prompt", lambda: model.generate(ids, attention_mask=mask, max_new_tokens=3),
            "padding inside")
    refused(f"{name}: positions of packed rows", lambda: model(ids, position_ids=torch.arange(TOKENS)[None] % 10),
            "document_ids")
    refused(f"{name}: document_ids of another length", lambda: model(last, document_ids=ones, cache=new_cache()),
            "document_ids")

    # An error in the middle of a call leaves a cache whose layers disagree.
    cache = new_cache()
    broken = model.model.layers[-1].register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        model(last, cache=cache)
    except ZeroDivisionError:
        pass
    broken.remove()
    refused(f"{name}: a call that was interrupted", lambda: model(last, cache=cache), "new cache")

    class Forgetful(type(model)):
        """A release of transformers that has another name still."""

        def _update_model_kwargs_for_generation(self, *args, **kwargs):
            model_kwargs = super()._update_model_kwargs_for_generation(*args, **kwargs)
            return {key: value for key, value in model_kwargs.items() if key not in ("cache", "past_key_values")}

    forgetful = Forgetful(model.config).eval()
    refused(f"{name}: generate without the cache", lambda: forgetful.generate(ids, max_new_tokens=3, do_sample=False))


def training_refuses(name, model):
    """Gradient checkpointing takes the cache from the layers."""
    ids = torch.randint(1, VOCABULARY, (1, TOKENS))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    refused(f"{name}: a cache under gradient checkpointing", lambda: model(ids, use_cache=True), "gradient checkpointing")
    loss = model(ids, labels=ids, position_ids=torch.arange(TOKENS)[None]).loss
    loss.backward()
    grad = model.get_input_embeddings().weight.grad
    check(f"{name}: trains", bool(grad.isfinite().all()) and bool(grad.any()))


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # of names that newer releases have replaced
    for name, fields in MODELS.items():
        for part in (tokens_are_the_same, step_by_step, lost_caches_are_refused, training_refuses):
            try:
                with torch.set_grad_enabled(part is training_refuses):
                    part(name, make_model(fields))
            except Exception as error:  # the others still run
                check(f"{name}: {part.__name__}", False, f"{type(error).__name__}: {error}")
    print(f"transformers {transformers.__version__}: {failures} failed")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
