"""Configuration of TransXSSM models: state-space (SSD) and attention layers under one rotary position embedding."""
from transformers import PretrainedConfig


class TransXSSMConfig(PretrainedConfig):
    r"""Every field that decides which parameters exist and what is computed.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads: as in other models.
            Key/value heads default to all.
        head_dim: width of the heads of both mixers; default: hidden_size / num_attention_heads.
        attention_bias: q, k, v and o have biases. mlp_bias: gate, up and down have.
        intermediate_size: width of the SwiGLU feed-forward sub-layer; 0 for layers without one.
        attn_layer_period, attn_layer_offset: layer i is attention where `i % period == offset`, else state-space.
        layer_pattern: one letter a layer, `A` (attention) or `S` (state-space), instead of period and offset.
        attention_position: `rope`, or `none` for attention without positions.
        ssd_position: `rope` (B and C are rotated like k and q), `conv1d` (a short causal convolution over x, B, C), or
            `none` (the decay alone).
        ssd_state_size: state entries a channel.
        ssd_num_groups: groups of heads that share B and C; default: num_attention_heads.
        ssd_expand: state-space heads are `ssd_expand * num_attention_heads`.
        ssd_gate: the mixer's output passes a RMSNorm per group, gated by silu(z). ssd_skip: x is added, scaled by D.
        ssd_conv_kernel: taps of the convolution. ssd_chunk_size: tokens computed at once; results do not depend on it.
        rope_scaling: None, or a dict of `rope_type` (`linear`, `dynamic`, `yarn`, `llama3`), `factor` and
            `original_max_position_embeddings`; llama3 has `low_freq_factor` and `high_freq_factor` besides.
        log_n_scale: q and C are multiplied by `max(1, log(position + 1) / log(original length))`.
        learned_residual: the residual stream is multiplied by a learned weight per channel at each addition.
    """

    model_type = "transxssm"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # older releases of transformers have the second
    # Plain attributes: the library's own reading of these two differs between its versions.
    rope_theta = 10000.0
    rope_scaling = None

    def __init__(
        self,
        vocab_size=50304,
        hidden_size=768,
        intermediate_size=3584,
        num_hidden_layers=24,
        num_attention_heads=12,
        num_key_value_heads=None,
        head_dim=None,
        attention_bias=False,
        mlp_bias=False,
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        max_position_embeddings=2048,
        rope_theta=10000.0,
        rope_scaling=None,
        log_n_scale=False,
        attn_layer_period=8,
        attn_layer_offset=7,
        layer_pattern=None,
        attention_position="rope",
        ssd_position="rope",
        ssd_state_size=128,
        ssd_num_groups=None,
        ssd_chunk_size=256,
        ssd_expand=1,
        ssd_gate=False,
        ssd_skip=False,
        ssd_conv_kernel=4,
        learned_residual=True,
        tie_word_embeddings=True,
        use_cache=True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size / num_attention_heads
        self.attention_bias = attention_bias
        self.mlp_bias = mlp_bias
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.log_n_scale = log_n_scale
        self.attn_layer_period = attn_layer_period
        self.attn_layer_offset = attn_layer_offset
        self.layer_pattern = layer_pattern or None
        self.attention_position = attention_position
        self.ssd_position = ssd_position
        self.ssd_state_size = ssd_state_size
        self.ssd_num_groups = ssd_num_groups or num_attention_heads
        self.ssd_chunk_size = ssd_chunk_size
        self.ssd_expand = ssd_expand
        self.ssd_gate = ssd_gate
        self.ssd_skip = ssd_skip
        self.ssd_conv_kernel = ssd_conv_kernel
        self.learned_residual = learned_residual
        self.use_cache = use_cache
        self._check()
        self.head_dim = int(self.head_dim)
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def _check(self):
        """Raises ValueError naming the first field that cannot be."""
        legal = {
            "attention_position": ("rope", "none"),
            "ssd_position": ("rope", "conv1d", "none"),
            "rope_scaling.rope_type": ("none", "linear", "dynamic", "yarn", "llama3"),
        }
        for field, values in legal.items():
            value = self.rope_type if field.startswith("rope") else getattr(self, field)
            if value not in values:
                raise ValueError(f"{field} is {value!r}; there are {', '.join(values)}")
        for field, total, divisor in (
            ("num_key_value_heads", self.num_attention_heads, self.num_key_value_heads),
            ("ssd_num_groups", self.ssd_heads, self.ssd_num_groups),
        ):
            if total % divisor:
                raise ValueError(f"{field} is {divisor}, which does not divide {total}")
        if self.head_dim % 2:  # where it is not given, it may be a fraction
            raise ValueError(f"head_dim is {self.head_dim:g}, which is no even number")
        pattern = self.layer_pattern
        if pattern is not None and (len(pattern) != self.num_hidden_layers or set(pattern) - set("AS")):
            raise ValueError(f"layer_pattern must be {self.num_hidden_layers} letters A or S, not {pattern!r}")

    def is_attention(self, layer):
        if self.layer_pattern is not None:
            return self.layer_pattern[layer] == "A"
        return layer % self.attn_layer_period == self.attn_layer_offset

    @property
    def ssd_heads(self):
        return self.ssd_expand * self.num_attention_heads

    @property
    def rope_type(self):
        scaling = self.rope_scaling or {}
        kind = scaling.get("rope_type", scaling.get("type", "none"))
        return "none" if kind == "default" else kind

    @property
    def original_length(self):
        """Positions that the unscaled frequencies are meant for; where the log-n scale begins to grow."""
        scaling = {} if self.rope_type == "none" else self.rope_scaling
        return scaling.get("original_max_position_embeddings", self.max_position_embeddings)


__all__ = ["TransXSSMConfig"]
