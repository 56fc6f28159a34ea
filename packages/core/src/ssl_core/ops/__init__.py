"""The operations that take the time: for each a schema, a specification in plain PyTorch, and back-ends by device."""

from ssl_core.ops.enqueue import enqueue_ as enqueue_
from ssl_core.ops.implementations import implementations as implementations
from ssl_core.ops.momentum_update import momentum_update_ as momentum_update_
from ssl_core.ops.queue_attention import queue_attention as queue_attention
from ssl_core.ops.queue_attention import queue_attention_reference as queue_attention_reference
from ssl_core.ops.queue_attention import with_gradient as with_gradient
