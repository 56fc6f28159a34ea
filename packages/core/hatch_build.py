"""Hatchling's build hook: compiles ``csrc/`` with ninja.

``csrc/cpu`` and the bindings become ``ssl_core/_C``; ``csrc/cuda`` becomes ``ssl_core/libssl_core_cuda.so`` where nvcc
is found (in CUDA_HOME or on the path) and SSL_CORE_CUDA is not 0. That library holds its own CUDA runtime, no torch.

SSL_CORE_BUILD says what happens without a working C++ compiler: ``auto`` (default) warns and goes on, since everything
also runs on plain PyTorch; ``1`` is an error; ``0`` does not compile at all. CXX, CXXFLAGS and LDFLAGS are respected.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Each kernel is compiled once for each of these; csrc/cpu/dispatch.cpp chooses at run time.
INSTRUCTION_SETS = {"generic": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma"]
KERNELS = ("queue_attention", "enqueue", "momentum_update", "uniform", "render_views")
CUDA_KERNELS = ("queue_attention", "enqueue", "momentum_update")
CUDA_LIBRARY = "libssl_core_cuda.so"


class CompiledCore(BuildHookInterface):
    """Adds the compiled module to wheels, and puts it beside the sources of an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds a wheel; ``version`` is ``standard`` or ``editable``."""
        if self.target_name != "wheel":
            return
        wanted = os.environ.get("SSL_CORE_BUILD", "auto")
        if wanted not in ("auto", "0", "1"):
            raise ValueError(f"SSL_CORE_BUILD must be auto, 0 or 1, not {wanted!r}")
        package = Path(self.root, "src", "ssl_core")
        if version == "editable":
            for old in (*package.glob("_C*" + sysconfig.get_config_var("EXT_SUFFIX")), package / CUDA_LIBRARY):
                old.unlink(missing_ok=True)  # never leave a stale library beside new sources
        if wanted == "0":
            return
        # Beside the package in an sdist, at the top of a checkout.
        sources = next(path for path in (Path(self.root, "csrc"), Path(self.root, "../../csrc")) if path.is_dir())
        folder = Path(self.root, "build", sysconfig.get_config_var("EXT_SUFFIX").strip(".").split(".")[0]).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for build in (self._compile_module, self._compile_cuda):
            try:
                library = build(sources.resolve(), folder)
            except OSError as error:
                if wanted == "1":
                    raise RuntimeError(f"could not compile the core: {error}") from error
                self.app.display_warning(f"ssl-core is built without some of its compiled kernels: {error}")
                continue
            if library is None:
                continue
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            if version == "editable":
                shutil.copy2(library, package / library.name)
            else:
                build_data["force_include"][str(library)] = f"ssl_core/{library.name}"

    def _compile_module(self, sources: Path, folder: Path) -> Path:
        from pybind11 import get_include

        compiler = os.environ.get("CXX") or next(
            (name for name in ("g++", "c++", "clang++") if shutil.which(name)), "c++"
        )
        openmp = self._openmp_flags(compiler, folder)
        flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wextra"]
        flags += [f"-ffile-prefix-map={sources.parent}=.", *openmp, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        includes = [f"-isystem{path}" for path in (sysconfig.get_path("include"), get_include())]
        shared = ["-shared", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared", "-Wl,-s"]
        shared += shlex.split(os.environ.get("LDFLAGS", ""))
        objects = []  # (source, object, flags of its own)
        for name, isa_flags in INSTRUCTION_SETS.items():
            for kernel in KERNELS:
                own = [*isa_flags, f"-DSSL_CORE_ISA={name}"]
                objects.append((sources / "cpu" / f"{kernel}.cpp", f"{kernel}_{name}.o", own))
        objects.append((sources / "cpu" / "dispatch.cpp", "dispatch.o", []))
        objects.append((sources / "bindings.cpp", "bindings.o", includes))
        return self._build(
            folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}",
            f"{compiler} {shlex.join(flags)} $flags -MMD -MF $out.d -c $in -o $out",
            f"{compiler} $in {shlex.join([*openmp, *shared])} -o $out",
            objects,
        )

    def _compile_cuda(self, sources: Path, folder: Path) -> Path | None:
        home = os.environ.get("CUDA_HOME")
        nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
        if nvcc is None or os.environ.get("SSL_CORE_CUDA") == "0":
            return None
        # Machine code for A100 and H100, and portable code for whatever comes later. Not sm_90a: no kernel has the
        # instructions that it adds (wgmma), and its code runs nowhere else.
        targets = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"]
        flags = ["-std=c++17", "-O3", *targets, "-Xcompiler=-fPIC,-fvisibility=hidden"]
        shared = ["-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL", "-Xlinker=-s"]
        objects = [(sources / "cuda" / f"{kernel}.cu", f"{kernel}_cuda.o", []) for kernel in CUDA_KERNELS]
        return self._build(
            folder / CUDA_LIBRARY,
            f"{nvcc} {shlex.join(flags)} $flags -MMD -MF $out.d -c $in -o $out",
            f"{nvcc} $in {shlex.join(shared)} -o $out",
            objects,
        )

    def _build(self, library: Path, compile_command: str, link_command: str, objects: list[Any]) -> Path:
        """Run ninja on a file of its own beside the library."""
        from ninja import BIN_DIR
        from ninja.ninja_syntax import Writer

        folder = library.parent
        file = folder / f"{library.name}.ninja"
        with file.open("w") as stream:
            ninja = Writer(stream)
            ninja.variable("builddir", f"{library.name}.d")  # a log of its own
            ninja.rule("compile", compile_command, depfile="$out.d", deps="gcc")
            ninja.rule("link", link_command)
            for source, name, flags in objects:
                ninja.build(str(folder / name), "compile", str(source), variables={"flags": shlex.join(flags)})
            ninja.build(str(library), "link", [str(folder / name) for _, name, _ in objects])
        command = [str(Path(BIN_DIR, "ninja")), "-C", str(folder), "-f", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"{compile_command.split()[0]} failed:\n{done.stdout[-4000:]}{done.stderr[-1000:]}")
        return library

    def _openmp_flags(self, compiler: str, folder: Path) -> list[str]:
        """Flags that this compiler can build several threads with; none, with a warning, where it cannot."""
        test = folder / "openmp.cpp"
        test.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        command = [*shlex.split(compiler), "-fopenmp", str(test), "-o", str(folder / "openmp")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return ["-fopenmp"]
        self.app.display_warning(f"{compiler} has no OpenMP, so the compiled kernels will use one thread")
        return []
