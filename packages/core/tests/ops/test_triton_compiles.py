"""Every kernel as its op launches it, and every configuration of the table, compiled for GPUs that need not be there.

Interpreted kernels say nothing about types, registers, shared memory or the order of instructions: what the compiler
refuses and a configuration that does not fit are errors only at a launch.
"""

import re
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from ssl_core.ops import _triton
from ssl_core.ops.instructions import View
from ssl_core.testing import finished_process
from ssl_core.views import HEAVY, PRESETS, ViewSpec, derive
from ssl_core.views.program import make_programs

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(_triton.is_interpreted(), reason="TRITON_INTERPRET=1 forbids to compile"),
]

# Registers and bytes of shared memory of a multiprocessor, and of a block. Those of 8.0, except that the table's
# entries for it serve 8.6, 8.9 and 12.0 as well, where a block gets 99 KiB.
LIMITS = {(8, 0): (65536, 164 * 1024, 99 * 1024), (9, 0): (65536, 228 * 1024, 227 * 1024)}
SPILLED_BYTES = 16  # four registers, as some versions of Triton need for dimension 512
RESERVED_BYTES = 1024  # of shared memory, by the system, for each block
POINTERS = {
    "query": "*{dtype}",
    "queue": "*{dtype}",
    "inverse_temperature": "*fp32",
    "length": "*i64",
    "exclude": "*i64",
    "key_bias": "*fp32",
    "partial": "*fp32",
    "partial_sums": "*fp32",
}


VIEW_POINTERS = {
    "layout": "*i64",
    "parameters": "*fp64",
    "memory": "*fp32",
    "starts": "*i64",
    "mean_std": "*fp32",
    "kept": "*fp32",
    "result": "*fp16",
}


@pytest.fixture
def kernels():
    """The module with the kernels, which imports Triton."""
    from ssl_core.ops._triton import queue_attention

    return queue_attention


def compile_for(capability, dtype, dim, kernels):
    """The kernel as a loss launches it: unit rows and a queue that fills."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    configuration = kernels.configuration(capability, dtype, dim)
    kernel = kernels._partial_kernel
    constants = {
        "LARGEST_BOUNDED_SCALE": kernels._LARGEST_BOUNDED_SCALE,
        "BLOCK_N": configuration.block_n,
        "BLOCK_K": configuration.block_k,
        "BLOCK_D": dim,
        "NORMALIZED": True,
        "HAS_LENGTH": True,
        "HAS_EXCLUDE": False,
        "HAS_BIAS": False,
        "PRECISION": "ieee",
        "IS_BFLOAT16": dtype == torch.bfloat16,
        "UPCAST": False,
    }
    name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    signature = {
        argument: "constexpr" if argument in constants else POINTERS.get(argument, "i32").format(dtype=name)
        for argument in kernel.arg_names
    }
    # As at a launch, where sizes and addresses are multiples of 16.
    attributes = {
        (index,): [["tt.divisibility", 16]] for index, name in enumerate(kernel.arg_names) if name not in constants
    }
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", 10 * capability[0] + capability[1], 32),
        options={"num_warps": configuration.warps, "num_stages": configuration.stages},
    )


def compile_view_for(capability, specs, *, pixels="*u8", channels=3):
    """The kernel of the last view, which begins with an image or continues the first view."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ssl_core.ops._triton import render_views as views

    program = make_programs(tuple(specs))[-1]
    steps = views._program(View(program.instructions, torch.empty(0, 0), program.size, program.continues))
    warps, block = views._configuration(program.size)
    constants = {
        "PROGRAM": views._flat(steps),
        "FRAMED": steps[0].opcode <= 3,
        "HIGHEST": {"*u8": 255.0, "*i16": 65535.0, "*fp32": 1.0}[pixels],
        "CHANNELS": channels,
        "C": triton.next_power_of_2(channels),
        "BLOCK": block,
        "IS_BFLOAT16": False,
        "column_stride": 1,
    }
    if program.continues >= 0:
        constants["layout"] = None
    if program.continues >= 0 or constants["FRAMED"]:
        constants["starts"] = None
    if len(specs) == 1:
        constants["kept"] = None
    pointers = VIEW_POINTERS | {"pixels": pixels}
    signature = {
        argument: "constexpr" if argument in constants else pointers.get(argument, "i32")
        for argument in views._render_kernel.arg_names
    }
    compiled = triton.compile(
        ASTSource(views._render_kernel, signature, constants),
        target=GPUTarget("cuda", 10 * capability[0] + capability[1], 32),
        options={"num_warps": warps, "num_stages": 1, "enable_fp_fusion": False},
    )
    return compiled, warps


def resources(compiled, folder):
    """Registers of a thread, and bytes of its stack: what does not fit into them."""
    usage = cuobjdump("-res-usage", compiled, folder)
    return tuple(int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))


def cuobjdump(option, compiled, folder):
    """What NVIDIA's tool, which comes with Triton, says of the machine code."""
    from triton import knobs

    file = folder / "kernel.cubin"
    file.write_bytes(compiled.asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, option, str(file)]
    done = finished_process(command)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def launch_compiles(monkeypatch):
    """What has been launched, of tensors on the CPU: compiled for a GPU of compute capability 9.0, and not run."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    gpu = {
        "get_current_device": lambda: -1,  # one that has nothing compiled yet
        "get_current_stream": lambda device: 0,
        "get_current_target": lambda: GPUTarget("cuda", 90, 32),
    }
    monkeypatch.setattr(triton.runtime.driver, "_active", SimpleNamespace(**gpu))

    def launch(kernel, grid):
        def compiles(*arguments, enable_fp_fusion, **options):  # whose default depends on the version of Triton
            options["enable_fp_fusion"] = enable_fp_fusion
            compiled.append(kernel.run(*arguments, grid=grid, warmup=True, **options))

        return compiles

    compiled = []
    monkeypatch.setattr(JITFunction, "__getitem__", launch)
    return compiled


def position():
    return torch.zeros((), dtype=torch.int64)


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=NIGHTLY)], ids=str)
@pytest.mark.parametrize(
    ("n", "k", "d"),
    [(5, 64, 130), *(pytest.param(*sizes, marks=NIGHTLY) for sizes in [(1, 1, 1), (3, 2, 64)])],
    ids=str,
)
def test_enqueue_compiles_and_counts_on_no_other_launch(n, k, d, dtype, launch_compiles):
    from ssl_core.ops._triton.enqueue import enqueue

    enqueue(torch.zeros(k, d, dtype=dtype), torch.ones(n, d), position(), position())
    # A counter of those that are done would be shared with other streams and with graphs that have not run.
    assert not any("atom." in kernel.asm["ptx"] for kernel in launch_compiles)


@pytest.mark.parametrize(
    "shadows", [[torch.zeros(5).bfloat16()], pytest.param([], marks=NIGHTLY)], ids=["shadow", "none"]
)
def test_momentum_update_compiles(shadows, launch_compiles):
    from ssl_core.ops._triton.momentum_update import momentum_update

    momentum_update([torch.zeros(5)], [torch.ones(5)], shadows, torch.tensor(0.5))


@pytest.mark.parametrize(
    ("n", "k", "d", "dtype"),
    [
        (300, 5000, 64, torch.bfloat16),
        *(
            pytest.param(*sizes, dtype, marks=NIGHTLY)
            for sizes in [(1, 1, 1), (33, 40, 100), (300, 5000, 64)]
            for dtype in (torch.bfloat16, torch.float16, torch.float32)
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("hides", [False, True])
def test_queue_attention_compiles(n, k, d, dtype, hides, kernels, launch_compiles):
    options = (position(), torch.zeros(n, dtype=torch.int64), torch.zeros(k)) if hides else (None, None, None)
    query, queue = torch.zeros(n, d, dtype=dtype), torch.zeros(k, d, dtype=dtype)
    for normalized in (False, True):
        kernels.queue_attention(query, queue, torch.ones(n), *options, normalized)


@pytest.fixture
def _default_precision():
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.usefixtures("_default_precision")
def test_products_of_float32_are_as_precise_as_those_of_pytorch(kernels):
    assert kernels._precision() == "ieee"
    torch.set_float32_matmul_precision("high")
    assert kernels._precision() == "tf32"
    # Under its new name, after which PyTorch refuses to read the old one.
    for precision in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = precision
        assert kernels._precision() == precision


@pytest.mark.nightly
@pytest.mark.parametrize("dim", [64, 128, 256, 512])
@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((8, 0), torch.float32)],
    ids=["9.0 bfloat16", "8.0 bfloat16", "8.0 float32"],
)
def test_a_configuration_fits_as_often_as_it_says_and_spills_hardly_a_register(
    capability, dtype, dim, kernels, tmp_path
):
    configuration = kernels.configuration(capability, dtype, dim)
    compiled = compile_for(capability, dtype, dim, kernels)
    registers, stack = resources(compiled, tmp_path)
    shared = compiled.metadata.shared
    all_registers, all_shared, block_shared = LIMITS[capability]
    assert stack <= SPILLED_BYTES
    assert shared <= block_shared
    assert configuration.residents * (shared + RESERVED_BYTES) <= all_shared
    registers_of_block = 32 * configuration.warps * (registers + -registers % 8)
    assert configuration.residents * registers_of_block <= all_registers


@pytest.mark.nightly
@pytest.mark.parametrize("dim", [64, 128, 256, 512])
def test_products_for_hopper_are_issued_together(dim, kernels, tmp_path):
    # The compiler that finds fault with the registers of a wgmma waits for each one before the next.
    code = cuobjdump("-sass", compile_for((9, 0), torch.bfloat16, dim, kernels), tmp_path)
    assert 0 < 2 * code.count("WARPGROUP.ARRIVE") <= code.count("HGMMA")


@pytest.mark.nightly
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["8.0", "9.0"])
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("name", ["weak", "strong", "strong_gamma"])
def test_a_view_leaves_room_for_enough_warps_on_a_multiprocessor(name, size, capability, tmp_path):
    import triton

    compiled, warps = compile_view_for(capability, [ViewSpec(PRESETS[name], (size,))])
    registers, stack = resources(compiled, tmp_path)
    assert stack == 0
    all_registers, all_shared, _ = LIMITS[capability]
    is_recent = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
    needed = 32 if is_recent else 16  # Triton 3.6 takes up to 108 registers for a thread, 3.9 at most 64
    assert needed * 32 * (registers + -registers % 8) <= all_registers
    assert (needed // warps) * (compiled.metadata.shared + RESERVED_BYTES) <= all_shared


# Cosines of doubles keep 40 bytes for huge angles; the rest is spilled by the many distortions.
DISTORTED_BYTES = 128


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("capability", "options", "specs"),
    [
        ((9, 0), {}, [ViewSpec(PRESETS["clsa_strong"], (224,))]),
        ((8, 0), {"pixels": "*i16", "channels": 5}, [ViewSpec(PRESETS["dssl_byol"], (32,))]),
        ((9, 0), {"pixels": "*fp32"}, "heavy"),
        ((8, 0), {"channels": 1}, [ViewSpec(PRESETS["moco_v2_uncropped"], (33,))]),
    ],
    ids=["distorted", "whole image, uint16, 5 channels", "continued", "1 channel"],
)
def test_a_view_with_distortions_fits(capability, options, specs, tmp_path):
    if specs == "heavy":
        standard = ViewSpec(PRESETS["dssl_imagenet"], (32,))
        specs = [standard, derive([standard], 0, HEAVY["byol_harder"])]
    compiled, warps = compile_view_for(capability, specs, **options)
    registers, stack = resources(compiled, tmp_path)
    assert stack <= DISTORTED_BYTES
    assert 32 * warps * (registers + -registers % 8) <= LIMITS[capability][0]


@pytest.mark.nightly
def test_a_view_neither_divides_approximately_nor_fuses_products_with_sums():
    code = compile_view_for((9, 0), [ViewSpec(PRESETS["strong_gamma"], (32,))])[0].asm["ptx"]
    assert "div.rn.f32" in code
    assert "div.full.f32" not in code
    assert "fma.rn.f32" not in code


@pytest.mark.nightly
def test_distortions_that_follow_one_another_are_compiled_once():
    from ssl_core.ops._triton import render_views as views

    specs = (ViewSpec((*PRESETS["clsa_strong"], *HEAVY["cifar_code"], *HEAVY["cifar_code"]), (32,)),)
    (program,) = make_programs(specs)
    steps = views._program(View(program.instructions, torch.empty(0, 0), 32))
    # Five draws of two numbers, then twice two draws of four.
    assert [step.repetitions for step in steps] == [1, 1, 1, 1, 1, 5, 4]
