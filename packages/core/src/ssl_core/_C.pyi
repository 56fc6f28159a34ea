"""Compiled kernels of csrc/, see csrc/bindings.cpp; addresses are ``Tensor.data_ptr()``, 0 for none."""

openmp: bool
opcodes: list[str]  # by number, as `ssl_core.ops.instructions.Opcode`
distortions: list[str]

def instruction_sets() -> list[str]: ...
def queue_attention(
    query: int,
    queue: int,
    inverse_temperature: int,
    exclude: int,
    key_bias: int,
    lse: int,
    expectation: int,
    num_rows: int,
    num_keys: int,
    dim: int,
    query_stride: int,
    queue_stride: int,
    queue_is_bfloat16: bool,
    bounded: bool,
    threads: int,
    isa: str,
) -> None: ...
def enqueue(
    queue: int,
    keys: int,
    cursor: int,
    length: int,
    num_rows: int,
    num_keys: int,
    dim: int,
    queue_stride: int,
    keys_stride: int,
    queue_is_bfloat16: bool,
    threads: int,
    isa: str,
) -> None: ...
def momentum_update(
    targets: list[int],
    onlines: list[int],
    shadows: list[int],
    sizes: list[int],
    momentum: float,
    threads: int,
    isa: str,
) -> None: ...
def uniform(seed: int, streams: int, result: int, num_streams: int, num_draws: int, isa: str) -> None: ...
def render_views(
    pixels: int,
    layout: int,
    views: list[tuple[int, int, int, int, int, int, int]],
    mean: int,
    std: int,
    num_images: int,
    channels: int,
    pixel_dtype: int,
    result_dtype: int,
    channels_last: bool,
    threads: int,
    isa: str,
) -> None: ...
