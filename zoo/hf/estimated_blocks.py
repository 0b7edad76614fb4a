"""Builds the layers of an estimated model from shared fields and, where they are known, from stored shapes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

from zoo.blocks import GQA, KVSource, Layer, LayerNorm, LearnedPositions, NoPE, Norm, RMSNorm, SharedKV, SparseMLA
from zoo.blocks.layer import Branch
from zoo.hf.estimated_feed_forwards import HIDDEN, FeedForwards
from zoo.hf.estimated_mixers import Mixers
from zoo.hf.layer_plan import CONTEXT, Kind
from zoo.hf.shared_fields import SharedFields
from zoo.hf.stored_shapes import StoredLayer, StoredShapes

DIM = ("hidden_size", "n_embd", "d_model", "model_dim", "dim")
LEARNED = ("n_positions", "n_ctx")
LAYER_NORM_EPS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")


class Blocks:
    """The blocks of one model: what all layers share is read once, the rest layer by layer."""

    def __init__(self, fields: SharedFields, stored: StoredShapes | None) -> None:
        self.fields, self.stored = fields, stored
        self.held = stored.layers if stored else []
        self.dim = fields.required("width of the model", *DIM)
        self.vocab = fields.required("vocabulary", "vocab_size", "n_vocab", "padded_vocab_size")
        if table := stored.embedding() if stored else None:
            self.vocab = table[0]
        self.norm = self._norm()
        self._mixers, self._ffns = Mixers(fields, self.dim, self.held), FeedForwards(fields, self.dim)
        self.context = fields.integer("the longest context", *CONTEXT)

    def layer_key(self, i: int) -> Hashable:
        """Returns a key for what layer i has of its own: layers with equal keys and kinds are equal."""
        listed = (self.fields.values.get(name) for name in HIDDEN)
        widths = tuple(each[i] for each in listed if isinstance(each, list) and i < len(each))
        return self._shares_choice(i), repr(widths), tuple(sorted(self.held[i].shapes.items())) if self.held else None

    def _shares_choice(self, i: int) -> bool:
        kinds = self.fields.values.get("indexer_types")
        return isinstance(kinds, list) and i < len(kinds) and kinds[i] == "shared"

    def layers(self, kind: Kind, i: int) -> Iterator[Layer]:
        """Yields layer i: one layer, or two if an attention and a state stand side by side in it."""
        held = self.held[i] if self.held else StoredLayer({})
        mixer, ffn = self._mixers.mixer(kind.mixer, held), self._ffns.feed_forward(kind.ffn, i, held)
        if isinstance(mixer, SparseMLA) and self._shares_choice(i):
            mixer = replace(mixer, shares_choice=True)
        branches, stored = bool(mixer) + bool(ffn), len(held.norms)
        after = self.norm if held.shapes and stored >= 2 * branches else None
        parallel = bool(held.shapes) and stored < branches  # feed-forward and attention read the same normalised x
        if beside := self._mixers.beside(kind.mixer):
            yield Layer(Branch(beside), None)
        attn = Branch(mixer, self.norm, after) if mixer else None
        yield Layer(attn, Branch(ffn, None if parallel and mixer else self.norm, after) if ffn else None)

    def sharing(self, layers: Sequence[Layer]) -> list[Layer]:
        """Returns the layers, of which the last may take the keys and values of earlier ones."""
        shared = self.fields.integer("last layers without own keys and values", "num_kv_shared_layers", least=0) or 0
        if not 0 < shared < len(layers):
            return list(layers)

        def changed(layer: Layer, kind: type[GQA]) -> Layer:
            attn = layer.mixer
            if layer.attn is None or type(attn) is not GQA:
                return layer
            values = {name: getattr(attn, name) for name in attn.__match_args__}
            if kind is SharedKV:
                values |= dict(v_norm=None, keys_as_values=False)
            return replace(layer, attn=layer.attn.with_block(kind(**values)))

        own = len(layers) - shared
        return [changed(layer, KVSource if i < own else SharedKV) for i, layer in enumerate(layers)]

    def positions(self) -> LearnedPositions | None:
        """Returns the learned positions: stored ones, or those of a config without any other encoding."""
        fields = self.fields
        if self.stored is not None:
            count = self.stored.positions()
            return LearnedPositions(count) if count else None
        count = fields.integer("positions", *LEARNED) if isinstance(self._mixers.position, NoPE) else None
        biased = fields.flag("positions as a bias of scores", "alibi", "attn_config.alibi")
        if count is None or biased:
            return None
        learned = fields.ask(f"whether {fields.shown(*LEARNED)} positions are learned", [("yes", True), ("no", False)])
        return LearnedPositions(count) if learned else None

    def _norm(self) -> Norm:
        fields = self.fields
        rms = fields.number("eps of RMS norms", "rms_norm_eps", "norm_eps")
        eps = fields.number("eps of layer norms", *LAYER_NORM_EPS)
        if self.held and any(bias for held in self.held for _, bias in held.norms):
            return LayerNorm(eps or rms or 1e-5)
        if rms or eps is None:
            return RMSNorm(rms or 1e-5)
        plain = LayerNorm(eps, bias=False)
        if self.held:
            return plain
        return fields.ask(
            f"whether norms have biases ({fields.shown(*LAYER_NORM_EPS)})", [("yes", LayerNorm(eps)), ("no", plain)]
        )
