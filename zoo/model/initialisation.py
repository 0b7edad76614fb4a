"""Weights of a fresh model, chosen so that it starts near the uniform prediction and learns from the first steps.

Blocks need no edit here: a norm says at which values it changes nothing, a recurrence at which it starts (`identity`),
a block which of its matrices write to the residual stream (`residual_outputs`), and a branch whether that output is
normalised before it is added.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zoo.blocks.layer import ResidualBranch
from zoo.core.devices import allocating
from zoo.model.module import Model


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Draw the weights of a model, or of one block, from `seed`: on a CPU the same values whatever else is built.

    - Matrices are normal with variance 1 / fan-in, so that activations keep their size (LeCun et al. 1998, "Efficient
      BackProp", section 4.6); those of routers and of latents (MLA), and each expert's, too.
    - A block's output matrices, in branches that are added as they are, are multiplied by n^-1/2, n the number of such
      branches: twice the layers (GPT-2, Radford et al. 2019, section 2.3). The branches together then add what the
      embedding holds, at any depth. Where the output is normalised first (OLMo 2, Gemma) their scale has no effect.
    - Embeddings have variance 1 as the first layer receives them, after `embed_scale` (as in Takase et al. 2023, "Spike
      No More"): with less, the first branches drown what tells tokens apart.
    - A head of its own has variance 1 / dim as every matrix. A tied head is the embedding; its product with an input
      token's own row is as large as dim. The norm before it starts at embed_scale^2 / dim: 1 / dim, at which no logit
      exceeds 1, and 1 where embeddings have variance 1 / dim (Gemma).
    - Norms are the identity, that of queries less where scores would have a variance above one; biases, sinks and a
      router's correction are zero. Decays and time steps of recurrences are spread over the heads as their papers draw
      them.
    """
    for _ in drawn(module, seed):
        pass


@torch.no_grad()
def drawn(module: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Each parameter's name, and its initial values in its own place; of a module on the meta device, one after the
    other in memory of their own on the CPU."""
    scales, generators = _residual_scales(module), dict[torch.device, torch.Generator]()
    gains: dict[Tensor, float] = {}
    if isinstance(module, Model):
        scales[module.embed.weight] = module.spec.dim**0.5 / module.spec.embed_scale
        if module.head is None:
            gains[module.norm.get_parameter("weight")] = min(module.spec.embed_scale**2 / module.spec.dim, 1.0)
    for path, part in module.named_modules():
        for name, weight in part.named_parameters(recurse=False):
            value = torch.empty_like(weight, device="cpu") if weight.is_meta else weight
            if weight.ndim >= 2 and not name.endswith("bias"):  # experts' biases are stacked
                generator = generators.setdefault(value.device, torch.Generator(value.device).manual_seed(seed))
                value.normal_(std=scales.get(weight, 1.0) * weight.shape[-1] ** -0.5, generator=generator)
            else:
                start = torch.as_tensor(getattr(part, "identity", {}).get(name, 0.0))
                if weight in gains:  # added: a norm may multiply by 1 + w. In bfloat16 1 / 576 - 1 would be -1
                    start = start.to(torch.promote_types(value.dtype, torch.float32)) + (gains[weight] - 1.0)
                value.copy_(start)
            yield (f"{path}.{name}" if path else name), value


def fill_buffers(model: Model, device: str | torch.device = "cpu", every: bool = False) -> None:
    """Gives buffers that no checkpoint holds the values that they have in a fresh model: those without memory yet, or
    `every` one. Parameters are allocated meanwhile and not written, which takes no memory."""
    spec, parts = model.spec, [*zip(model.spec.layers, model.layers, strict=True), (model.spec.norm, model.norm)]
    for block, module in parts:
        wanted = [
            (parent, name, f"{path}.{name}".lstrip("."))
            for path, parent in module.named_modules()
            for name, buffer in parent.named_buffers(recurse=False)
            if (buffer.is_meta or every) and name not in getattr(parent, "stored_buffers", ())
        ]
        if wanted:
            with allocating("cpu", model.embed.weight.dtype):
                fresh = block.build(spec.dim)
            for parent, name, path in wanted:
                setattr(parent, name, fresh.get_buffer(path).to(device))


def _residual_scales(module: nn.Module) -> dict[Tensor, float]:
    """Output matrix -> its factor, of each branch that is added without being normalised."""
    branches = [part for part in module.modules() if isinstance(part, ResidualBranch) and not part.normalises_output]
    return {weight: len(branches) ** -0.5 for branch in branches for weight in residual_outputs(branch.block)}


def residual_outputs(block: nn.Module) -> list[Tensor]:
    """The matrices whose products are the block's output: those that its modules name in `residual_outputs`, each a
    parameter or the module that holds it."""
    return [
        weight
        for part in block.modules()
        for key, weight in part.named_parameters()
        if weight.ndim >= 2 and key.split(".")[0] in getattr(part, "residual_outputs", ())
    ]
