"""Modules of a method: encoder, heads, momentum branch, queue, and BatchNorm across or within devices."""

from typing import TYPE_CHECKING

from ssl_core.lazy import on_first_use
from ssl_core.nn.batch_norm import GatheredBatchNorm as GatheredBatchNorm
from ssl_core.nn.batch_norm import SplitBatchNorm as SplitBatchNorm
from ssl_core.nn.batch_norm import depends_on_processes as depends_on_processes
from ssl_core.nn.batch_norm import split_batch_norm as split_batch_norm
from ssl_core.nn.batch_norm import sync_batch_norm as sync_batch_norm
from ssl_core.nn.batch_norm import with_first_statistics as with_first_statistics
from ssl_core.nn.heads import HeadConfig as HeadConfig
from ssl_core.nn.heads import make_predictor as make_predictor
from ssl_core.nn.heads import mlp_head as mlp_head
from ssl_core.nn.momentum import MomentumBranch as MomentumBranch
from ssl_core.nn.momentum import MomentumConfig as MomentumConfig
from ssl_core.nn.queue import Queue as Queue
from ssl_core.nn.queue import QueueConfig as QueueConfig
from ssl_core.nn.unit import unit as unit

if TYPE_CHECKING:
    from ssl_core.nn.encoder import EncoderConfig as EncoderConfig
    from ssl_core.nn.encoder import encoder_options as encoder_options
    from ssl_core.nn.encoder import make_encoder as make_encoder
    from ssl_core.nn.encoder import stem_for as stem_for
    from ssl_core.nn.encoder import strides_over_a_pixel as strides_over_a_pixel
    from ssl_core.nn.weights import load_weights_ as load_weights_
    from ssl_core.nn.weights import run_encoder as run_encoder

# timm, which comes with torchvision, takes as long to import as PyTorch.
__getattr__ = on_first_use(
    __name__,
    encoder="EncoderConfig encoder_options make_encoder stem_for strides_over_a_pixel",
    weights="load_weights_ run_encoder",
)
