"""The momentum branch: a moving average of encoder and projector, and the keys that it makes.

    target <- m target + (1 - m) online                                                          (2)

Paper: He et al., 2020, 1911.05722; its section 3.3 is shuffle-BN.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.nn.batch_norm import split_batch_norm
from ssl_core.nn.unit import unit
from ssl_core.ops import momentum_update_
from ssl_core.philox import permutation
from ssl_core.schedules import cosine_schedule
from ssl_core.step import Step

# Keeps the permutations of shuffle-BN apart from all other random numbers of the run's seed.
_SHUFFLE_STREAM = 0x5F5F

# What autocast rounds. Normalization keeps float32 parameters.
_ROUNDED = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class MomentumConfig:
    """Settings of a :class:`MomentumBranch`.

    Attributes:
        value: m, weight of the old parameters in the average, in [0, 1]; its first value, with a schedule.
        schedule: course of m: ``constant``, or ``cosine`` from ``value`` to 1 at the last step.
        shuffle: whether the branch's batch is permuted, over all processes and each view in its own order, so that
            BatchNorm's statistics do not give away which query belongs to a key.
        batch_norm_splits: number of virtual devices of the momentum encoder's 2-d BatchNorm; 1 for ordinary BatchNorm.
        split_online: whether the online encoder's BatchNorm is split too, as in MoCo's CIFAR-10 notebook.
    """

    value: float = 0.999
    schedule: Literal["constant", "cosine"] = "constant"
    shuffle: bool = True
    batch_norm_splits: int = 1
    split_online: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise ValueError(f"momentum.value must be between 0 and 1, got {self.value}")
        if self.batch_norm_splits < 1:
            raise ValueError(f"momentum.batch_norm_splits must be at least 1, got {self.batch_norm_splits}")

    def at(self, step: Step) -> float:
        """The m of the update after a step."""
        return self.value if self.schedule == "constant" else cosine_schedule(self.value, 1.0, step.progress)


class MomentumBranch(nn.Module):
    """Momentum encoder and projector, from images to keys.

    Both are copies of the online ones, and none of their parameters asks for gradient. They are ordinary submodules:
    ``train()`` and ``eval()`` of their owner reach them. Only parameters are averaged; BatchNorm's running statistics
    are the branch's own.

    Args:
        encoder: online encoder, (n c h w) -> (n f), which is copied.
        projector: online projector, (n f) -> (n d), which is copied.
        config: settings of the average and of BatchNorm; ``split_online`` splits the online encoder's, in place.
        seed: seed of the permutations.

    Example:
        >>> online = nn.Flatten(), nn.Linear(12, 2)
        >>> branch, step = MomentumBranch(*online, MomentumConfig(0.99)), Step(index=0, total=10, steps_per_epoch=10)
        >>> keys = branch(torch.ones(5, 3, 2, 2), step)
        >>> keys.shape, keys.requires_grad
        (torch.Size([5, 2]), False)
        >>> branch.update_(*online, step)
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module, config: MomentumConfig, *, seed: int = 0) -> None:
        super().__init__()
        if config.split_online:
            split_batch_norm(encoder, config.batch_norm_splits)
        self.encoder, self.projector = copy.deepcopy(encoder), copy.deepcopy(projector)
        self.requires_grad_(False)
        if not config.split_online:
            split_batch_norm(self.encoder, config.batch_norm_splits)
        self.config = config
        self.seed = seed
        # Not submodules: they hold no state of their own. Empty until `use_bfloat16_weights_`.
        self._twins: tuple[nn.Module, ...] = ()
        self._shadows: list[Tensor] = []
        self.register_load_state_dict_post_hook(_refresh_shadows)  # type: ignore[no-untyped-call]  # torch's is untyped

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "n c h w"], step: Step, view: int = 0) -> Float[Tensor, "n d"]:
        """Keys of a batch: l2-normalized projections (see :func:`unit`), without gradient.

        Args:
            images: (n c h w) images of this process.
            step: place in the training; the permutation depends on it.
            view: number in [0, 16) that tells apart the permutations of one step.
        """
        if not self.config.shuffle:
            return self._keys(images)
        rows = len(images) * distributed.world_size()

        def drawn(step: Step) -> Tensor:
            # Beyond 16 micro-batches the next step's permutations come again, which does no harm.
            counter = (step.index << 8 | step.micro << 4 | view) & 0xFFFFFFFF
            return permutation(self.seed, (_SHUFFLE_STREAM, counter), rows)

        # On the CPU, it says without a device sync which image goes to which process.
        order = step.value(drawn, images.device if distributed.world_size() == 1 else torch.device("cpu"))
        return distributed.unshuffle(self._keys(distributed.shuffle(images, order)), order)

    @torch.no_grad()
    def update_(self, encoder: nn.Module, projector: nn.Module, step: Step) -> None:
        """Move toward the online modules, by the m of the step just taken.

        Args:
            encoder: online encoder.
            projector: online projector.
            step: step just taken.

        Raises:
            ValueError: if a parameter's shape differs.
        """
        # In one call: on a GPU one launch, whose table of addresses stays valid from step to step.
        parameters = list(self.parameters())
        momentum_update_(
            parameters,
            [*encoder.parameters(), *projector.parameters()],
            step.value(self.config.at, parameters[0].device),
            shadow_params=self._shadows or None,
        )

    @torch.no_grad()
    def use_bfloat16_weights_(self) -> None:
        """Run with a bfloat16 copy of the weights, written by `update_` together with the average.

        Under bfloat16 autocast the keys stay the same to the last bit. Autocast makes the same copy, but makes it again
        in every forward, since it caches only weights that ask for gradient. Without autocast such a branch does not
        run. The copy costs 2 bytes per parameter. Call this when modules and device are final.
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
