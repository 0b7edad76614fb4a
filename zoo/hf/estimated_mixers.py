"""Builds the mixers of an estimated model from shared fields and, where they are known, from stored shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from zoo.blocks import (
    GQA,
    KDA,
    MLA,
    GatedDeltaNet,
    Indexer,
    LayerNorm,
    Mamba2,
    NoPE,
    Position,
    RMSNorm,
    RoPE,
    ShortConv,
    SparseMLA,
)
from zoo.hf.layer_plan import CHUNKS, STATES, WINDOWS
from zoo.hf.shared_fields import SharedFields
from zoo.hf.stored_shapes import StoredLayer
from zoo.registry import Mixer

HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS: tuple[str, ...] = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv", "num_query_groups")
KV_HEADS += ("attn_config.kv_n_heads",)
HEAD_DIM = ("head_dim", "attention_head_dim", "kv_channels", "d_head", "d_kv")
BIASES = ("attention_bias", "use_bias", "bias", "qkv_bias")


class Mixers:
    """The mixers of one model of width `dim`: what all layers share is read once, the rest layer by layer. `held` has
    the stored shapes of the layers, if they are known."""

    def __init__(self, fields: SharedFields, dim: int, held: Sequence[StoredLayer]) -> None:
        self.fields, self.dim = fields, dim
        self._widths = [layer.attention_widths(dim) for layer in held if layer.keys_in not in (None, layer.state_in)]
        self.heads = fields.required("number of heads", *HEADS)
        self.head_dim = self._head_dim()
        self.kv_heads = self._kv_heads()
        self.position = self._position()

    def mixer(self, kind: str, held: StoredLayer) -> Mixer | None:
        """Returns the mixer of a layer whose kind is named as in layer_plan; None for a layer without one."""
        match kind:
            case "none":
                return None
            case "mamba":
                return self._mamba()
            case "delta":
                return self._delta()
            case "kda":
                return self._kda()
            case "conv":
                taps = self.fields.required("tokens of the short convolution", "conv_L_cache", "conv_kernel")
                channels = self.fields.integer("channels of the short convolution", "conv_dim", "conv_dim_out")
                return ShortConv(channels or self.dim, taps)
        if self.fields.name_of("kv_lora_rank"):
            return self._latent()
        return self._attention(kind, held)

    def _attention(self, kind: str, held: StoredLayer) -> GQA:
        fields, heads, kv_heads, head_dim = self.fields, self.heads, self.kv_heads, self.head_dim
        if kind in ("full", "both"):
            head_dim = fields.integer("width of a head in layers without a window", "global_head_dim") or head_dim
            kv_heads = fields.integer("key heads without a window", "num_global_key_value_heads") or kv_heads
        elif kind == "window":
            head_dim = fields.integer("width of a head in layers with a window", "swa_head_dim") or head_dim
            kv_heads = fields.integer("key heads with a window", "swa_num_key_value_heads") or kv_heads
            heads = fields.integer("heads with a window", "swa_num_attention_heads") or heads
        v_dim = fields.integer("width of a value", "v_head_dim", "value_head_dim")
        gate: Literal["element", "head"] | None = (
            "element" if fields.flag("an output gate", "attn_output_gate") else None
        )
        keys_bias = out_bias = bool(fields.flag("biases of attention", *BIASES))
        keys_as_values = bool(fields.flag("keys are values", "attention_k_eq_v")) and kind == "full"
        qk_norm = bool(fields.flag("norms of queries and keys", "use_qk_norm", "qk_layernorm", "qk_norm"))
        over, sinks = "head", False
        if held.shapes:
            q, k, v, fused = held.attention_widths(self.dim)
            output = held.output_width
            if k and k % head_dim == 0:
                kv_heads = k // head_dim
            elif fused and (both := fused - heads * head_dim) > 0 and both % (2 * head_dim) == 0:
                kv_heads = both // (2 * head_dim)
            doubled = bool(q and output and q == 2 * heads * head_dim and heads * head_dim in output)
            by_width: dict[int | None, Literal["element", "head"]] = {heads: "head", heads * head_dim: "element"}
            gate = "element" if doubled else by_width.get(held.gate_width(self.dim))
            keys_as_values = k is not None and v is None
            keys_bias, out_bias = held.has_bias
            width = held.qk_norm
            qk_norm, over = width is not None, "head" if width == head_dim else "projection"
            sinks = held.has_sinks
        return GQA(
            heads,
            kv_heads,
            head_dim,
            rope=self.position,
            window=fields.integer("tokens in a window", *WINDOWS) if kind == "window" else None,
            chunk=fields.integer("tokens in a chunk", *CHUNKS) if kind == "chunk" else None,
            v_dim=None if keys_as_values or v_dim == head_dim else v_dim,
            gate=gate,
            bias=out_bias or ("qkv" if keys_bias else False),
            qk_norm=RMSNorm(1e-6) if qk_norm else None,
            qk_norm_over="projection" if over == "projection" else "head",
            keys_as_values=keys_as_values,
            sinks=sinks,
        )

    def _latent(self) -> MLA:
        fields = self.fields
        rank = fields.required("rank of the cached latent", "kv_lora_rank")
        nope = fields.required("width of a head without positions", "qk_nope_head_dim")
        rope = fields.integer("width of a head with positions", "qk_rope_head_dim", least=0)
        if not rope:
            rope, rank, nope = 2, rank - 2, nope - 2
            fields.note("latent attention without positions is read with 2 of the elements of its latent rotated")
        attn = MLA(
            self.heads,
            q_rank=fields.integer("rank of the queries", "q_lora_rank"),
            kv_rank=rank,
            nope_dim=nope,
            rope_dim=rope,
            v_dim=fields.required("width of a value", "v_head_dim"),
            norm=RMSNorm(1e-6),
            rope=self.position,
        )
        fields.restated("follows from the widths of latent attention", *KV_HEADS, "head_dim", "qk_head_dim")
        if not fields.name_of("index_topk"):
            return attn
        indexer = Indexer(
            fields.required("heads of the indexer", "index_n_heads"),
            fields.required("width of an index key", "index_head_dim"),
            fields.required("keys that the indexer chooses", "index_topk"),
            norm=LayerNorm(1e-6),
        )
        fields.raw("layers that reuse the choice of an earlier indexer", "indexer_types")
        values = {name: getattr(attn, name) for name in attn.__match_args__}
        return SparseMLA(**values, indexer=indexer)

    def _mamba(self) -> Mixer:
        fields = self.fields
        state = fields.required("columns of the state", *STATES)
        taps = fields.integer("tokens of the convolution", "conv_kernel", "mamba_d_conv", "mamba_conv_kernel") or 4
        expand = fields.integer("inner width over the model's", "mamba_expand", "expand") or 2
        inner = fields.integer("inner width", "mamba_d_ssm", "mamba_intermediate") or expand * self.dim
        fields.restated("Mamba-2's convolution has a bias", "mamba_conv_bias", "use_conv_bias")
        heads = fields.integer("heads of the state", "mamba_num_heads", "mamba_n_heads")
        if heads is None:
            fields.integer("rank of the time steps", "mamba_dt_rank")
            fields.note(
                "Mamba-1 layers are read as Mamba-2 with one head: the same state, other projections, and 2 x "
                f"{state} more channels in the cached convolution"
            )
            return Mamba2(1, inner, 1, state, max(taps, 2), 1e-5)
        width = fields.integer("width of a head of the state", "mamba_head_dim", "mamba_d_head") or max(
            inner // heads, 1
        )
        groups = fields.integer("groups of the state", "n_groups", "mamba_n_groups", "mamba_num_groups") or 1
        return Mamba2(heads, width, groups, state, max(taps, 2), 1e-5)

    def _delta(self) -> Mixer:
        fields = self.fields
        keys = fields.required("key heads of linear attention", "linear_num_key_heads")
        return GatedDeltaNet(
            keys,
            fields.integer("value heads of linear attention", "linear_num_value_heads") or keys,
            fields.required("width of a key of linear attention", "linear_key_head_dim"),
            fields.required("width of a value of linear attention", "linear_value_head_dim"),
            fields.integer("tokens of the convolution", "linear_conv_kernel_dim") or 4,
            RMSNorm(1e-6),
        )

    def _kda(self) -> Mixer:
        fields, of = self.fields, "linear_attn_config."
        return KDA(
            fields.required("heads of linear attention", f"{of}num_heads"),
            fields.required("width of a head of linear attention", f"{of}head_dim"),
            fields.integer("tokens of the convolution", f"{of}short_conv_kernel_size") or 4,
            RMSNorm(1e-6),
        )

    def beside(self, kind: str) -> Mixer | None:
        """Returns the state that stands beside attention in a layer of the kind "both"."""
        return self._mamba() if kind == "both" else None

    def _head_dim(self) -> int:
        given = self.fields.integer(
            "width of a head", "head_dim", "attention_head_dim", "kv_channels", "d_head", "d_kv"
        )
        queries = next((q for q, *_ in self._widths if q), None)
        if (
            given is None
            and queries
            and queries % self.heads == 0
            and not self.fields.flag("an output gate", "attn_output_gate")
        ):
            return queries // self.heads
        if self.fields.name_of("kv_lora_rank"):  # latent attention has widths of its own
            return given or 1
        if given is None and self.dim % self.heads:
            raise self.fields.error(
                f"{self.fields.shown(*HEADS)} do not divide the width {self.dim}, and there is no head_dim"
            )
        return given or self.dim // self.heads

    def _kv_heads(self) -> int:
        fields = self.fields
        given = fields.integer("number of key and value heads", *KV_HEADS)
        if not fields.flag("one key head for all heads", "multi_query", "multi_query_attention"):
            return given or self.heads
        if given in (None, 1) or self._widths:
            return 1
        answers = [("one, by multi_query", 1), (f"{given}, by {fields.shown(*KV_HEADS)}", given)]
        return fields.ask("how many key heads there are", answers)

    def _position(self) -> Position:
        names = ("rope_theta", "rotary_emb_base", "rope_parameters.rope_theta", "rope_scaling.rope_theta")
        theta = self.fields.values.get(self.fields.name_of(*names) or "")
        if isinstance(theta, int | float) and not isinstance(theta, bool) and 0 < theta < 1e300:
            return RoPE(float(theta))
        return NoPE()
