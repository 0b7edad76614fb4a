"""Initialises a fresh model so that it starts near the uniform prediction and learns from the first steps.

New blocks need no edit here. `identity` holds the initial values of a norm or a recurrence. `residual_outputs` names
the matrices of a block that write to the residual stream. `normalises_output` tells whether a branch normalises its
output.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zoo.blocks.layer import ResidualBranch
from zoo.model.module import Model
from zoo.model.module import fill_buffers as fill_buffers


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Draws the weights of a model, or of one block, from `seed`. On a CPU, other random draws do not change them.

    - Matrices are normal with variance 1 / fan-in, so that activations keep their size (LeCun et al. 1998, "Efficient
      BackProp", section 4.6). This includes routers, latents (MLA) and each expert.
    - Output matrices of branches whose output is added without a norm are multiplied by n^-1/2, where n is the number
      of such branches, in general twice the number of layers (GPT-2, Radford et al. 2019, section 2.3). All branches
      together then add as much variance as the embedding has, for any number of layers. If the output is normalised
      first (OLMo 2, Gemma), the scale of these matrices has no effect.
    - Embeddings have variance 1 as the first layer receives them, after `embed_scale` (as in Takase et al. 2023, "Spike
      No More"). With less variance, the first branches would drown the differences between tokens.
    - An untied head has variance 1 / dim, like every matrix. A tied head is the embedding, so the logit of the input
      token itself would be as large as dim. The norm before the head therefore starts at embed_scale^2 / dim: at
      1 / dim without an embed_scale, where no logit exceeds 1, and at 1 if embed_scale^2 is dim (Gemma).
    - Norms start as the identity. The norm of queries starts lower if scores would otherwise have a variance above one.
      Biases, sinks and a router's correction are zero. Decays and time steps of recurrences vary by head, as published.
    """
    for _ in drawn(module, seed):
        pass


@torch.no_grad()
def drawn(module: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yields each parameter's name and initial values, which are written to the parameter. If the module is on the meta
    device, each parameter's values are in new memory on the CPU instead."""
    scales, generators = _residual_scales(module), dict[torch.device, torch.Generator]()
    gains: dict[Tensor, float] = {}
    if isinstance(module, Model):
        scales[module.embed.weight] = module.spec.dim**0.5 / module.spec.embed_scale
        if module.head is None and (weight := getattr(module.norm, "weight", None)) is not None:
            gains[weight] = min(module.spec.embed_scale**2 / module.spec.dim, 1.0)
    for path, part in module.named_modules():
        for name, weight in part.named_parameters(recurse=False):
            value = torch.empty_like(weight, device="cpu") if weight.is_meta else weight
            if weight.ndim >= 2 and not name.endswith("bias"):  # stacked biases of experts have 2 dimensions, too
                generator = generators.setdefault(value.device, torch.Generator(value.device).manual_seed(seed))
                value.normal_(std=scales.get(weight, 1.0) * weight.shape[-1] ** -0.5, generator=generator)
            else:
                start = torch.as_tensor(getattr(part, "identity", {}).get(name, 0.0))
                if weight in gains:  # added: a norm may multiply by 1 + w. In bfloat16, 1 / 576 - 1 would be -1
                    start = start.to(torch.promote_types(value.dtype, torch.float32)) + (gains[weight] - 1.0)
                value.copy_(start)
            yield (f"{path}.{name}" if path else name), value


def _residual_scales(module: nn.Module) -> dict[Tensor, float]:
    """Returns output matrix -> factor of its initial values, for each branch whose output is added without a norm."""
    branches = [part for part in module.modules() if isinstance(part, ResidualBranch) and not part.normalises_output]
    return {weight: len(branches) ** -0.5 for branch in branches for weight in residual_outputs(branch.block)}


def residual_outputs(block: nn.Module) -> list[Tensor]:
    """Returns the matrices that compute the block's output. Modules list them in `residual_outputs`, by the name of the
    parameter or of the submodule that holds it."""
    return [
        weight
        for part in block.modules()
        for key, weight in part.named_parameters()
        if weight.ndim >= 2 and key.split(".")[0] in getattr(part, "residual_outputs", ())
    ]
