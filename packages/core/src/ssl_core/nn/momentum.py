"""The momentum branch: a moving average of encoder and projector, and the keys that it makes.

    target <- m target + (1 - m) online                                                          (2)

Paper: He et al., 2020, 1911.05722; its section 3.3 is shuffle-BN.
"""

import copy
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.nn.batch_norm import split_batch_norm
from ssl_core.nn.unit import unit
from ssl_core.ops import momentum_update_
from ssl_core.philox import permutation
from ssl_core.step import Step

_Module = TypeVar("_Module", bound=nn.Module)

# Keeps the permutations of shuffle-BN apart from everything else that is drawn from the run's seed.
_SHUFFLE_STREAM = 0x5F5F

# What autocast rounds. Normalisation keeps float32 parameters.
_ROUNDED = (nn.Linear, nn.modules.conv._ConvNd)


def momentum_copy(module: _Module) -> _Module:
    """A copy of a module with the same parameters and buffers, none of which asks for gradient.

    It is an ordinary submodule: ``train()`` and ``eval()`` of its owner reach it, and its BatchNorm layers
    keep running statistics of their own.

    Example:
        >>> online = nn.Linear(2, 2)
        >>> momentum = momentum_copy(online)
        >>> bool((momentum.weight == online.weight).all()), momentum.weight.requires_grad
        (True, False)
    """
    return copy.deepcopy(module).requires_grad_(False)


class MomentumBranch(nn.Module):
    """Momentum encoder and projector, from images to keys.

    Only parameters are averaged; BatchNorm's running statistics are the branch's own.

    Args:
        encoder: the online encoder, (n c h w) -> (n f); copied.
        projector: the online projector, (n f) -> (n d); copied.
        shuffle: permute the batch, over all processes, so that BatchNorm statistics do not tell a key's query.
        batch_norm_splits: virtual devices of the encoder's 2-d BatchNorm; 1 leaves it as the online one's.
        split_online: split that of the online encoder too, in place, as MoCo's CIFAR-10 notebook does.
        seed: of the permutations.

    Example:
        >>> online = nn.Flatten(), nn.Linear(12, 2)
        >>> branch = MomentumBranch(*online)
        >>> keys = branch(torch.ones(5, 3, 2, 2), Step(index=0, total=10, steps_per_epoch=10))
        >>> keys.shape, keys.requires_grad
        (torch.Size([5, 2]), False)
        >>> branch.update_(*online, momentum=0.99)
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        shuffle: bool = True,
        batch_norm_splits: int = 1,
        split_online: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if split_online:
            split_batch_norm(encoder, batch_norm_splits)
            self.encoder = momentum_copy(encoder)
        else:
            self.encoder = split_batch_norm(momentum_copy(encoder), batch_norm_splits)
        self.projector = momentum_copy(projector)
        self.shuffle = shuffle
        self.seed = seed
        # Not submodules: they hold no state of their own. Empty until `use_bfloat16_weights_`.
        self._twins: tuple[nn.Module, ...] = ()
        self._shadows: list[Tensor] = []
        self.register_load_state_dict_post_hook(_refresh_shadows)  # type: ignore[no-untyped-call]  # torch's is untyped

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "n c h w"], step: Step, view: int = 0) -> Float[Tensor, "n d"]:
        """Keys of a batch: l2-normalised projections (see :func:`unit`), without gradient.

        Args:
            images: (n c h w), of this process.
            step: where the training is; the permutation depends on it.
            view: tells the permutations of one step apart, in [0, 16).
        """
        if not self.shuffle:
            return self._keys(images)
        # Beyond 16 micro-batches the next step's permutations come again, which does no harm.
        counter = (step.index << 8 | step.micro << 4 | view) & 0xFFFFFFFF
        order = permutation(self.seed, (_SHUFFLE_STREAM, counter), len(images) * distributed.world_size())
        order = order.to(images.device, non_blocking=True)
        return distributed.unshuffle(self._keys(distributed.shuffle(images, order)), order)

    @torch.no_grad()
    def update_(self, encoder: nn.Module, projector: nn.Module, momentum: float | Float[Tensor, ""]) -> None:
        """Move towards the online modules.

        Args:
            encoder: the online encoder.
            projector: the online projector.
            momentum: m, in [0, 1].

        Raises:
            ValueError: if a parameter's shape differs or momentum is outside [0, 1].
        """
        # In one call: on a GPU one launch, whose table of addresses stays valid from step to step.
        momentum_update_(
            list(self.parameters()),
            [*encoder.parameters(), *projector.parameters()],
            momentum,
            shadow_params=self._shadows or None,
        )

    @torch.no_grad()
    def use_bfloat16_weights_(self) -> None:
        """Run with a bfloat16 copy of the weights, written by `update_` together with the average.

        Under bfloat16 autocast the keys stay the same to the last bit: autocast makes the same copy, but again in
        every forward, since it caches only weights that ask for gradient. Without autocast such a branch does not
        run. Costs 2 bytes per parameter. Call it when modules and device are final.
        """
        shadows = {parameter: parameter.to(torch.bfloat16) for parameter in self.parameters()}
        # A copy that shares every tensor but the weights that autocast would round.
        memo: dict[int, object] = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        for module in self.modules():
            if isinstance(module, _ROUNDED):
                for parameter in module.parameters(recurse=False):
                    memo[id(parameter)] = nn.Parameter(shadows[parameter], requires_grad=False)
        self._twins = (copy.deepcopy(self.encoder, memo), copy.deepcopy(self.projector, memo))
        self._shadows = list(shadows.values())

    def _keys(self, images: Tensor) -> Tensor:
        encoder, projector = self._twins or (self.encoder, self.projector)
        for module in self._twins:
            if module.training != self.training:
                module.train(self.training)
        return unit(projector(encoder(images)))


@torch.no_grad()
def _refresh_shadows(branch: MomentumBranch, _: object) -> None:
    for shadow, parameter in zip(branch._shadows, branch.parameters(), strict=False):
        shadow.copy_(parameter)
