"""Builds the feed-forwards of an estimated model from shared fields and, where they are known, from stored shapes."""

from __future__ import annotations

from zoo.blocks import (
    GELU,
    GLU,
    MLP,
    FeedForward,
    Gated,
    GroupedSigmoidTopK,
    MoE,
    ReLUSquared,
    Router,
    SoftmaxTopK,
)
from zoo.hf.layer_plan import EXPERTS
from zoo.hf.shared_fields import SharedFields
from zoo.hf.stored_shapes import StoredLayer

MAX_EXPERTS = 100_000  # in a layer
HIDDEN = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff", "ffn_config.ffn_hidden_size")
DENSE_WIDTH = ("intermediate_size_mlp", "dense_intermediate_size")
EXPERT_WIDTH = ("moe_intermediate_size", "expert_ffn_hidden_size", *HIDDEN)
ACT = ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act", "activation", "ffn_act_fn")
GATED = ("silu", "swish", "swiglu", "swigluoai", "geglu", "situ")  # activations that stand in a gate in every release
WITHOUT_GATE = ("relu2", "relu", "gelu_new", "gelu_fast", "quick_gelu")
CHOSEN: tuple[str, ...] = ("num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_top_k", "moe_k")
CHOSEN += ("top_k_experts", "num_selected_experts", "ffn_config.moe_top_k")
SHARED_COUNT = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
SHARED_WIDTH = ("shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size")


class FeedForwards:
    """The feed-forwards of one model of width `dim`."""

    def __init__(self, fields: SharedFields, dim: int) -> None:
        self.fields, self.dim = fields, dim

    def feed_forward(self, kind: str, i: int, held: StoredLayer) -> FeedForward | None:
        """Returns the feed-forward of layer i: dense, moe or none."""
        if kind == "none":
            return None
        return self._experts(held) if kind == "moe" else self._dense(i, held)

    def _dense(self, i: int, held: StoredLayer) -> FeedForward:
        fields = self.fields
        moe = fields.name_of(*EXPERTS) is not None
        hidden = fields.integer("width of a dense feed-forward", *DENSE_WIDTH) if moe else None
        hidden = hidden or fields.of_layer(i, "width of a feed-forward", *HIDDEN, "moe_intermediate_size")
        if hidden is None:
            ratio = fields.integer("width of a feed-forward over the model's", "expansion_ratio", "ffn_ratio") or 4
            hidden = ratio * self.dim
        if found := held.feed_forward("ffn", self.dim):
            return self._linear(*found)
        return self._linear(hidden, None, None)

    def _linear(self, hidden: int, gated: bool | None, bias: bool | None) -> FeedForward:
        """Returns a feed-forward of linear maps. None: not known from stored shapes."""
        act = self.fields.raw("activation", *ACT)
        if bias is None:
            bias = bool(self.fields.flag("biases of the feed-forward", "mlp_bias", "use_mlp_bias", "use_bias", "bias"))
        if gated is None:
            gated = self._gated(act)
        if gated:
            return GLU(hidden, bias=bias)
        return MLP(hidden, ReLUSquared() if act == "relu2" else GELU(), bias=bias)

    def _gated(self, act: object) -> bool:
        word = act.lower() if isinstance(act, str) else ""
        if word in WITHOUT_GATE or word in GATED:
            return word in GATED
        first_gated = word == "gelu_pytorch_tanh" or (word != "" and "gelu" not in word)
        answers = [("three matrices, with a gate", True), ("two matrices", False)]
        named = self.fields.shown(*ACT) if word else "the feed-forward, without a named activation,"
        return self.fields.ask(f"whether {named} has a gate", answers if first_gated else answers[::-1])

    def _experts(self, held: StoredLayer) -> FeedForward:
        fields = self.fields
        count = fields.required("routed experts", *EXPERTS, most=MAX_EXPERTS)
        k = fields.integer("experts of a token", *CHOSEN, most=count)
        if k is None:
            raise fields.error(
                f"{fields.shown(*EXPERTS)}, but no field says how many experts a token has: {', '.join(CHOSEN)}"
            )
        width = fields.integer("width of an expert", *EXPERT_WIDTH)
        if width is None:
            raise fields.error(f"{fields.shown(*EXPERTS)}, but no field gives the width of an expert")
        latent = fields.integer("width of the experts' input", "moe_latent_size", "routed_expert_hidden_size")
        expert = self._linear(width, *self._style(held, "routed", latent or self.dim))
        if found := held.feed_forward("routed", latent or self.dim):
            expert = self._linear(*found)
        count = held.experts or count
        return MoE(count, expert, self._router(held, k), shared=self._shared(held, expert), latent=latent)

    def _style(self, held: StoredLayer, part: str, dim: int) -> tuple[bool | None, bool | None]:
        found = held.feed_forward(part, dim)
        return found[1:] if found else (None, None)

    def _router(self, held: StoredLayer, k: int) -> Router:
        scored = self.fields.raw("how experts are scored", "scoring_func", "score_func", "moe_router_activation_func")
        if held.has_correction or (not held.shapes and scored == "sigmoid"):
            return GroupedSigmoidTopK(k, groups=1, keep=1, scale=1.0)
        return SoftmaxTopK(k)

    def _shared(self, held: StoredLayer, expert: FeedForward) -> FeedForward | None:
        fields = self.fields
        width = fields.integer("width of the shared expert", *SHARED_WIDTH, least=0)
        count = fields.integer("shared experts", *SHARED_COUNT, least=0)
        if held.shapes:
            found = held.feed_forward("shared", self.dim)
            block = self._linear(*found) if found else None
            return Gated(block) if block and held.gates_shared else block
        total = width if width is not None else (count or 0) * expert.width
        return expert.with_width(total) if total else None
