"""What decoding keeps of the tokens before, and the way it takes through `generate`.

Releases of transformers hand the cache on under different names: `past_key_values`, and from 5.24 on `cache`. A model
that is given one token at a time and not its cache would go on writing, and write nonsense; so everything that shows
that a cache was lost, or belongs to other tokens, is an error here.
"""
import dataclasses

import torch
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

PADDING = -1  # the document of tokens that are none
NAMES = ("cache", "past_key_values")
FORMER_NAMES = ("cache_params", "layer_past", "mems", "past_buckets_states", "past_key_value", "state")
# The name that the installed release gives the cache, in arguments and in outputs.
CACHE = next((field.name for field in dataclasses.fields(CausalLMOutputWithPast) if field.name in NAMES), None)
if CACHE is None:
    raise ImportError(f"this release of transformers calls a model's cache neither {NAMES[0]} nor {NAMES[1]}: the last "
                      "release that this model was tested with is 5.24")


class TransXSSMCache:
    """Keys and values of attention layers; one state and a window of inputs of state-space layers.

    documents: [B, tokens seen], see joined_documents. rope_length: the row length that dynamic RoPE scaling is computed
    for; it is fixed by the first call, so that all positions are rotated by the same frequencies.
    """

    is_compileable = False
    is_croppable = False
    is_linear = (False,)  # no layer's: `generate` cuts off the tokens that the cache has seen

    def __init__(self, rope_length=None):
        self.kept = {}  # layer index -> its two tensors, and how many tokens they stand for
        self.documents = None
        self.rope_length = rope_length

    def get_seq_length(self, layer_idx=0):
        return 0 if self.documents is None else self.documents.shape[1]

    def take(self, layer_idx):
        return self.kept.get(layer_idx, (None, None, 0))[:2]

    def keep(self, layer_idx, first, second):
        self.kept[layer_idx] = (first, second, self.get_seq_length())

    def check(self, num_layers):
        """Raises where a layer has not kept all tokens that the cache has seen."""
        for layer in range(num_layers):
            length = self.kept.get(layer, (None, None, 0))[2]
            if length != self.get_seq_length():
                raise RuntimeError(
                    f"layer {layer} of the cache has kept {length} tokens of {self.get_seq_length()}: begin again with a "
                    "new cache; none can be kept where a call was interrupted or under gradient checkpointing"
                )

    def reorder_cache(self, beam_idx):
        """Row i becomes what row beam_idx[i] was."""
        for layer, (*pair, length) in self.kept.items():
            self.kept[layer] = (*(t if t is None else t[beam_idx] for t in pair), length)
        self.documents = self.documents[beam_idx]

    def crop(self, max_length):
        raise NotImplementedError("the state of a state-space layer cannot be taken back to fewer tokens")


def handed_cache(named, others):
    """The cache of a call: `named` holds the arguments that may be it, `others` those that the model does not know."""
    for name, value in others.items():
        if value is not None and (name in FORMER_NAMES or hasattr(value, "get_seq_length")):
            raise TypeError(f"{name} is no argument of this model; its cache is {CACHE}")
    caches = [value for value in named if value is not None]
    for cache in caches:
        if not isinstance(cache, TransXSSMCache):
            raise TypeError(f"{CACHE} must be a TransXSSMCache, or left out at first, not {type(cache).__name__}")
    if len(caches) > 1 and caches[0] is not caches[1]:
        raise ValueError(f"{' and '.join(NAMES)} are two caches; give one of them")
    return caches[0] if caches else None


def joined_documents(tokens, document_ids, attention_mask, seen):
    """[B, past+T]: equal within a document, PADDING for what is none. tokens [B,T,...]; seen [B,past], or None."""
    shape, past = tokens.shape[:2], 0 if seen is None else seen.shape[1]
    if past > 0 and seen.shape[0] != shape[0]:
        raise ValueError(f"{shape[0]} rows of tokens with a cache of {seen.shape[0]} rows")
    if document_ids is None:
        documents = torch.zeros(shape, dtype=torch.long, device=tokens.device)
        if past > 0:  # they continue the row's last document
            documents = documents + seen[:, -1:].masked_fill(seen[:, -1:] == PADDING, 0)
    elif document_ids.shape == shape:
        documents = document_ids
    else:
        raise ValueError(f"document_ids are of shape {tuple(document_ids.shape)}, the new tokens {tuple(shape)}")
    if attention_mask is not None:
        if attention_mask.dim() != 2 or attention_mask.shape[1] not in (shape[1], past + shape[1]):
            raise ValueError(
                f"attention_mask is of shape {tuple(attention_mask.shape)} for {shape[1]} new tokens and a cache of "
                f"{past}: the cache was not handed on, or it is another text's"
            )
        documents = documents.masked_fill(attention_mask[:, -shape[1] :] == 0, PADDING)
        if attention_mask.shape[1] == past + shape[1] and past > 0:
            if bool(((attention_mask[:, :past] == 0) & (seen != PADDING)).any()):
                raise ValueError("attention_mask leaves out tokens that the cache has seen")
    if past > 0:
        documents = torch.cat([seen, documents], 1)
    if attention_mask is not None or past > 0:
        real = documents != PADDING
        last = torch.where(real, torch.arange(documents.shape[1], device=real.device), -1).cummax(1).values[:, :-1]
        after_padding = real[:, 1:] & ~real[:, :-1] & (last >= 0)
        if bool((after_padding & (documents.gather(1, last.clamp(min=0)) == documents[:, 1:])).any()):
            raise ValueError("padding inside a document: it must come before the tokens of a row that is continued")
    return documents


def check_positions(position_ids, cache_position, positions, documents):
    """Raises where a caller's idea of the new tokens' positions [B,T] is not ours: it counts tokens that we never saw."""
    num_new = positions.shape[1]
    index = torch.arange(documents.shape[1], device=documents.device)[-num_new:]
    for name, given in (("position_ids", position_ids), ("cache_position", cache_position)):
        if given is None:
            continue
        fits = given.dim() <= 2 and given.shape[-1] == num_new
        if fits and not bool((given == index).all()):
            fits = bool(((given == positions) | (documents[:, -num_new:] == PADDING)).all())
        if not fits:
            raise ValueError(
                f"{name} are not the positions of {num_new} new tokens after {documents.shape[1] - num_new} in the cache: "
                "the cache was not handed on, or is another text's; rows of several documents need document_ids"
            )


class TransXSSMGenerationMixin(GenerationMixin):
    """`generate` with this model's cache. Its name tells transformers that the model can generate."""

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(f"cache_implementation {generation_config.cache_implementation!r} is none of this model's; "
                             "leave it out")
        # The frequencies of dynamic scaling are those of the longest row that may come out, from the first token on.
        model_kwargs.setdefault("rope_length", generation_config.max_length)
        cache = handed_cache([model_kwargs.pop(name, None) for name in NAMES], {})
        if cache is None and generation_config.use_cache is not False:
            cache = TransXSSMCache(model_kwargs["rope_length"])
        if cache is not None:
            model_kwargs[CACHE] = cache

    def prepare_inputs_for_generation(self, input_ids, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        cache = inputs.get(CACHE)
        new = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
        lost = any(isinstance(value, TransXSSMCache) and value is not cache for value in kwargs.values())
        if lost or (cache is None and new.shape[1] < input_ids.shape[1]):
            raise RuntimeError("this release of transformers does not hand the cache on as this model expects it; "
                               "generate(use_cache=False) does without")
        if self.config.rope_type == "dynamic" and kwargs.get("rope_length") is None:
            raise RuntimeError("dynamic RoPE scaling needs rope_length, the length of the longest row")
        documents = inputs.get("document_ids")
        if documents is not None:
            inputs.pop("position_ids", None)  # the library's, which do not know of documents
            past, num_new = 0 if cache is None else cache.get_seq_length(), new.shape[1]
            if documents.shape[1] != num_new:  # those of the prompt: what was written continues its last document
                written = documents[:, -1:].expand(-1, max(0, past + num_new - documents.shape[1]))
                inputs["document_ids"] = torch.cat([documents, written], 1)[:, past : past + num_new]
        return inputs
