"""The spec of a model that is trained from fresh weights: scaled, tiny or published, with swaps."""

from zoo import catalog
from zoo.errors import UsageError
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swaps
from zoo.swaps.scaled import resolved, scaled
from zoo.training.options import PUBLISHED, Options
from zoo.units import parse_count

BYTES = 256  # the vocabulary of a ByteTokenizer


def fresh_spec(options: Options) -> tuple[Decoder, list[str]]:
    """Returns the spec that the options describe, and the features that its swaps dropped.

    Only a published size keeps its vocabulary; the others have the tokenizer's. A swapped model is scaled again to the
    same number of parameters. Raises UsageError for an unknown name or an impossible swap, SpecError for one that gives
    no model, or where the parameters are too few.
    """
    if options.name is None:
        raise UsageError("which model?")
    vocab = options.vocab or BYTES
    if options.tiny:
        spec, dropped = apply_swaps(catalog.spec(options.name, tiny=True), options.swap)
        return spec.with_vocab(vocab), dropped
    full = catalog.spec(options.name)
    if options.params == PUBLISHED:
        return apply_swaps(full, options.swap)
    params = parse_count(options.params)
    small = scaled(full, params, vocab=vocab, context=options.context).spec
    spec, dropped = apply_swaps(small, options.swap)
    return (resolved(spec, params).spec if options.swap else small), dropped
