"""TransXSSM in plain PyTorch: state-space duality (SSD) and attention layers under one rotary position embedding.

Shapes: B rows, T tokens, D hidden size, H heads, P head width, N state entries, G groups of heads that share B and C.
Sources: TransXSSM (arXiv 2506.09507); Mamba-2 (arXiv 2405.21060) for the scan in chunks; YaRN (arXiv 2309.00071).

Precision: weights and activations may be bfloat16; norms, rotations, time steps, decays and states are float32 (float64
where the model is). A_log, dt_bias and D stay float32.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .cache_transxssm import (
    CACHE, NAMES, TransXSSMCache, TransXSSMGenerationMixin, check_positions, handed_cache, joined_documents
)
from .configuration_transxssm import TransXSSMConfig


def wide(x):
    """In float32, or float64 if it is that."""
    return x if x.dtype == torch.float64 else x.float()


def rotary_frequencies(config, width, length):
    """Angle per position of each pair (float64 [width/2]), and the factor on cos and sin; `length` is the row's."""
    base, scaling = config.rope_theta, config.rope_scaling or {}
    kind, factor, original = config.rope_type, scaling.get("factor", 1.0), config.original_length
    if kind == "dynamic" and length > original:
        base *= (factor * length / original - (factor - 1)) ** (width / (width - 2))
    pairs = torch.arange(width // 2, dtype=torch.float64)
    theta = base ** (-2 * pairs / width)
    if kind == "linear":
        return theta / factor, 1.0
    if kind == "llama3":  # pairs that turn often within the original length are kept, those that do not, stretched
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((original * theta / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        return theta * kept + theta / factor * (1 - kept), 1.0
    if kind != "yarn":
        return theta, 1.0

    def pair_that_turns(times):  # (real) index of the pair that turns so often within the original length
        return width * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(pair_that_turns(32)), 0)
    last = min(math.ceil(pair_that_turns(1)), width - 1)
    slowed = ((pairs - first) / max(last - first, 1e-3)).clamp(0, 1)  # 0: fast pairs, kept; 1: slow ones, stretched
    return theta * (1 - slowed) + theta / factor * slowed, 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


class Row:
    """What all layers share about the positions of new tokens.

    positions [B,T]: inside the document. starts [B,T]: first token of a document. mask: [B,1,T,past+T], or None where
    attention is causal over a single document. Padding is a document of its own.
    """

    def __init__(self, config, documents, num_new, rope_length, dtype):
        index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
        starts = torch.ones_like(documents, dtype=torch.bool)
        starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
        positions = index - torch.where(starts, index, 0).cummax(1).values
        self.positions, self.starts = positions[:, -num_new:], starts[:, -num_new:]
        self.mask = None
        if bool(starts[:, 1:].any()) or 1 < num_new < documents.shape[1]:
            run = starts.cumsum(1)
            same, causal = (f(t[:, None], t[:, -num_new:, None]) for f, t in ((torch.eq, run), (torch.le, index)))
            self.mask = (same & causal)[:, None]
        self.tables = {}
        for width in {config.head_dim, config.ssd_state_size}:
            theta, factor = rotary_frequencies(config, width, rope_length)
            angle = self.positions[..., None] * theta.to(documents.device)
            self.tables[width] = [(f(angle) * factor).to(dtype)[:, :, None] for f in (torch.cos, torch.sin)]
        self.log_n = None
        if config.log_n_scale:
            log_n = torch.log(self.positions.double() + 1) / math.log(config.original_length)
            self.log_n = log_n.clamp(min=1).to(dtype)[:, :, None, None]

    def rotate(self, x):
        """x [B,T,heads,width]: element j is paired with j + width/2."""
        cos, sin = self.tables[x.shape[-1]]
        first, second = wide(x).chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def log_n_scaled(self, x):
        return x if self.log_n is None else wide(x) * self.log_n


class TransXSSMRMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square taken over each of `groups` parts of the width."""

    def __init__(self, width, eps, groups=1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.groups = eps, groups

    def forward(self, x):
        parts = wide(x).unflatten(-1, (self.groups, -1))
        parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + self.eps)
        return (parts.flatten(-2) * self.weight).to(x.dtype)


class TransXSSMResidual(nn.Module):
    """weight * x + update; without a weight, x + update."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size)) if config.learned_residual else None

    def forward(self, x, update):
        kept = wide(x) if self.weight is None else wide(x) * self.weight
        return (kept + update).to(x.dtype)


class TransXSSMFeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class TransXSSMAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx, self.head_dim = layer_idx, config.head_dim
        self.rotates = config.attention_position == "rope"
        self.queries_per_key = config.num_attention_heads // config.num_key_value_heads
        width, bias = config.hidden_size, config.attention_bias
        q_width, kv_width = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(width, q_width, bias=bias)
        self.k_proj = nn.Linear(width, kv_width, bias=bias)
        self.v_proj = nn.Linear(width, kv_width, bias=bias)
        self.o_proj = nn.Linear(q_width, width, bias=bias)

    def forward(self, x, row, cache):
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.rotates:
            q, k = row.rotate(q), row.rotate(k)
        q = row.log_n_scaled(q)
        q, k, v = (t.to(v.dtype).transpose(1, 2) for t in (q, k, v))  # [B,heads,T,P]
        if cache is not None:
            old_k, old_v = cache.take(self.layer_idx)
            if old_k is not None:
                k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
            cache.keep(self.layer_idx, k, v)
        k, v = (t.repeat_interleave(self.queries_per_key, 1) for t in (k, v))
        is_causal = row.mask is None and q.shape[2] > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=row.mask, is_causal=is_causal)
        return self.o_proj(y.transpose(1, 2).flatten(-2))


def ssd_scan(x, dt, a, b, c, starts, state, chunk):
    """S_t = exp(a dt_t) S_{t-1} + dt_t x_t (x) b_t, reset where a document starts; y_t = S_t c_t. In chunks of tokens.

    x [B,T,H,P], dt [B,T,H], a [H], b and c [B,T,G,N], starts [B,T], state [B,H,P,N] before the first token.
    Returns y [B,T,H,P] and the state after the last token. In a chunk, terms that would cross the start of a document
    are masked before exponentiation.
    """
    heads_per_group = x.shape[2] // b.shape[2]
    outputs = []
    for at in range(0, x.shape[1], chunk):
        xc, dtc, bc, cc, sc = (t[:, at : at + chunk] for t in (x, dt, b, c, starts))
        decay = (dtc * a).cumsum(1)  # [B,Q,H], log of the decay from the chunk's beginning
        run = sc.cumsum(1)  # [B,Q], documents that started in this chunk so far
        xdt = xc * dtc[..., None]
        b_heads, c_heads = (t.repeat_interleave(heads_per_group, 2) for t in (bc, cc))
        within = (run[:, :, None] == run[:, None]).tril()[..., None]  # [B,Q,Q,1]: token i sees token j
        pairs = (decay[:, :, None] - decay[:, None]).masked_fill(~within, -math.inf).exp()
        scores = torch.einsum("bign,bjgn->bijg", cc, bc).repeat_interleave(heads_per_group, 3) * pairs
        carried = decay.masked_fill(run[..., None] != 0, -math.inf).exp()
        y = torch.einsum("bijh,bjhp->bihp", scores, xdt)
        outputs.append(y + torch.einsum("bih,bihn,bhpn->bihp", carried, c_heads, state))

        to_end = (decay[:, -1:] - decay).masked_fill((run != run[:, -1:])[..., None], -math.inf).exp()
        state = state * carried[:, -1, :, None, None] + torch.einsum("bjh,bjhp,bjhn->bhpn", to_end, xdt, b_heads)
    return torch.cat(outputs, 1), state


class TransXSSMStateSpace(nn.Module):
    """The state-space mixer with all its switches: rotation or convolution, gate, skip, expand."""

    def __init__(self, config, layer_idx):
        super().__init__()
        heads, groups, taps = config.ssd_heads, config.ssd_num_groups, config.ssd_conv_kernel
        inner, shared, width = heads * config.head_dim, groups * config.ssd_state_size, config.hidden_size
        self.layer_idx, self.chunk, self.widths = layer_idx, config.ssd_chunk_size, (inner, shared, shared)
        self.head_dim, self.state_size = config.head_dim, config.ssd_state_size
        self.rotates = config.ssd_position == "rope"
        self.x_proj = nn.Linear(width, inner, bias=False)
        self.b_proj = nn.Linear(width, shared, bias=False)
        self.c_proj = nn.Linear(width, shared, bias=False)
        self.dt_proj = nn.Linear(width, heads, bias=False)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.D = nn.Parameter(torch.ones(heads)) if config.ssd_skip else None
        self.conv1d = self.z_proj = self.norm = None
        if config.ssd_position == "conv1d":
            channels = sum(self.widths)
            self.conv1d = nn.Conv1d(channels, channels, taps, groups=channels)
        if config.ssd_gate:
            self.z_proj = nn.Linear(width, inner, bias=False)
            self.norm = TransXSSMRMSNorm(inner, config.rms_norm_eps, groups)

    def convolve(self, u, window, positions):
        """silu of the causal convolution of u [B,T,channels] inside documents, and the window for the next tokens."""
        weight, length, taps = self.conv1d.weight[:, 0], u.shape[1], self.conv1d.weight.shape[2]
        u = F.pad(u, (0, 0, taps - 1, 0)) if window is None else torch.cat([window, u], 1)
        y = wide(self.conv1d.bias).expand(u.shape[0], length, -1)
        for tap in range(taps):
            inside = (positions >= taps - 1 - tap)[..., None]
            y = y + torch.where(inside, wide(u[:, tap : tap + length]), 0) * wide(weight[:, tap])
        return F.silu(y), u[:, length:]

    def forward(self, x, row, cache):
        state, window = (None, None) if cache is None else cache.take(self.layer_idx)
        xs, b, c = self.x_proj(x), self.b_proj(x), self.c_proj(x)
        if self.conv1d is not None:
            joined, window = self.convolve(torch.cat([xs, b, c], -1), window, row.positions)
            xs, b, c = joined.to(x.dtype).split(self.widths, -1)
        xs = wide(xs).unflatten(-1, (-1, self.head_dim))
        b, c = (wide(t).unflatten(-1, (-1, self.state_size)) for t in (b, c))
        if self.rotates:
            b, c = row.rotate(b), row.rotate(c)
        if state is None:
            state = xs.new_zeros(xs.shape[0], *xs.shape[2:], self.state_size)
        with torch.autocast(x.device.type, enabled=False):
            dt = F.softplus(F.linear(wide(x), wide(self.dt_proj.weight)) + self.dt_bias)
            a = -torch.exp(self.A_log.to(dt.dtype))
            y, state = ssd_scan(xs, dt, a, b, row.log_n_scaled(c), row.starts, state, self.chunk)
        if cache is not None:
            cache.keep(self.layer_idx, state, window)
        if self.D is not None:
            y = y + self.D[:, None] * xs
        y = y.flatten(-2)
        if self.norm is not None:
            y = self.norm(y * F.silu(wide(self.z_proj(x))))
        return self.out_proj(y.to(x.dtype))


class TransXSSMLayer(GradientCheckpointingLayer):
    def __init__(self, config, layer_idx):
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.pre_sequence_layernorm = TransXSSMRMSNorm(width, eps)
        if config.is_attention(layer_idx):
            self.attn = TransXSSMAttention(config, layer_idx)
        else:
            self.ssd = TransXSSMStateSpace(config, layer_idx)
        self.post_sequence_residual = TransXSSMResidual(config)
        if config.intermediate_size > 0:
            self.pre_state_layernorm = TransXSSMRMSNorm(width, eps)
            self.feed_forward = TransXSSMFeedForward(config)
            self.post_state_residual = TransXSSMResidual(config)

    def forward(self, x, row, **cache):
        mixer = self.attn if hasattr(self, "attn") else self.ssd
        x = self.post_sequence_residual(x, mixer(self.pre_sequence_layernorm(x), row, cache[CACHE]))
        if hasattr(self, "feed_forward"):
            x = self.post_state_residual(x, self.feed_forward(self.pre_state_layernorm(x)))
        return x


class TransXSSMPreTrainedModel(PreTrainedModel):
    config_class = TransXSSMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _input_embed_layer = "word_embed"
    _no_split_modules = ["TransXSSMLayer"]
    _skip_keys_device_placement = list(NAMES)
    _keep_in_fp32_modules_strict = ["A_log", "dt_bias", "D"]
    _supports_sdpa = True
    _is_stateful = True

    def post_init(self):
        # Older releases refuse names that the model at hand has not.
        names = {name.split(".")[-1] for name, _ in self.named_parameters()}
        self._keep_in_fp32_modules_strict = [name for name in self._keep_in_fp32_modules_strict if name in names]
        super().post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, (TransXSSMRMSNorm, TransXSSMResidual)) and module.weight is not None:
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Conv1d):
            bound = 1 / math.sqrt(module.kernel_size[0])
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, TransXSSMStateSpace):
            decay = torch.empty_like(module.A_log).uniform_(1, 16)
            step = torch.empty_like(module.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            with torch.no_grad():
                module.A_log.copy_(decay.log())
                module.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step
                if module.D is not None:
                    module.D.fill_(1)


class TransXSSMModel(TransXSSMPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.word_embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([TransXSSMLayer(config, i) for i in range(config.num_hidden_layers)])
        self.final_layernorm = TransXSSMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, document_ids=None, cache=None, past_key_values=None,
                inputs_embeds=None, use_cache=None, rope_length=None, output_hidden_states=None, position_ids=None,
                **kwargs):
        """attention_mask: [B,T] or [B,past+T], zero for padding, which must come first in rows that are continued.

        document_ids: [B,T], equal within a document of a packed row: positions restart with each, nothing crosses.
        cache: a TransXSSMCache, in older releases of transformers named past_key_values. rope_length: row length for
        dynamic RoPE scaling; default: of this row, or of the first that the cache saw. position_ids: only compared with
        the positions that follow from all this.
        """
        cache = handed_cache((cache, past_key_values), kwargs)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        x = self.word_embed(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and cache is None:
            cache = TransXSSMCache()
        documents = joined_documents(x, document_ids, attention_mask, None if cache is None else cache.documents)
        rope_length = rope_length or documents.shape[1]
        if cache is not None:
            cache.check(len(self.layers))
            rope_length = cache.rope_length = cache.rope_length or rope_length
        row = Row(self.config, documents, x.shape[1], rope_length, wide(x).dtype)
        # Where there is a mask, its length says it; 5.0 counts one too many after a prompt in chunks.
        cache_position = None if attention_mask is not None else kwargs.get("cache_position")
        check_positions(position_ids, cache_position, row.positions, documents)

        if cache is not None:
            cache.documents = documents
        hidden_states = () if output_hidden_states or self.config.output_hidden_states else None
        for layer in self.layers:
            hidden_states = None if hidden_states is None else (*hidden_states, x)
            x = layer(x, row, **{CACHE: cache})
        x = self.final_layernorm(x)
        if cache is not None:
            cache.check(len(self.layers))
        hidden_states = None if hidden_states is None else (*hidden_states, x)
        return BaseModelOutputWithPast(last_hidden_state=x, hidden_states=hidden_states, **{CACHE: cache})


class TransXSSMForCausalLM(TransXSSMPreTrainedModel, TransXSSMGenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.word_embed.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = TransXSSMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, document_ids=None, cache=None, past_key_values=None,
                inputs_embeds=None, labels=None, use_cache=None, rope_length=None, output_hidden_states=None,
                position_ids=None, logits_to_keep=0, **kwargs):
        """labels: [B,T], shifted here; -100, and the first token of each document, are no targets."""
        outputs = self.model(input_ids, attention_mask, document_ids, cache, past_key_values, inputs_embeds, use_cache,
                             rope_length, output_hidden_states, position_ids, **(kwargs | {"return_dict": True}))
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            if document_ids is not None:
                labels = labels.clone()
                labels[:, 1:].masked_fill_(document_ids[:, 1:] != document_ids[:, :-1], -100)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=outputs.hidden_states,
                                      **{CACHE: getattr(outputs, CACHE)})


__all__ = ["TransXSSMCache", "TransXSSMForCausalLM", "TransXSSMModel", "TransXSSMPreTrainedModel"]
