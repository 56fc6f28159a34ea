"""Hatchling's build hook: compiles ``csrc/`` with ninja into ``ssl_core/_C``, the kernels that run on the CPU.

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
KERNELS = ("queue_attention", "enqueue", "momentum_update")


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
            for old in package.glob("_C*" + sysconfig.get_config_var("EXT_SUFFIX")):
                old.unlink()  # never leave a stale module beside new sources
        if wanted == "0":
            return
        try:
            module = self._compile()
        except (OSError, subprocess.CalledProcessError) as error:
            if wanted == "1":
                raise RuntimeError(f"could not compile the core: {error}") from error
            self.app.display_warning(f"ssl-core is built without its compiled kernels, which are faster: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        if version == "editable":
            shutil.copy2(module, package / module.name)
        else:
            build_data["force_include"][str(module)] = f"ssl_core/{module.name}"

    def _compile(self) -> Path:
        from ninja import BIN_DIR
        from ninja.ninja_syntax import Writer
        from pybind11 import get_include

        # Beside the package in an sdist, at the top of a checkout.
        sources = next(path for path in (Path(self.root, "csrc"), Path(self.root, "../../csrc")) if path.is_dir())
        sources = sources.resolve()
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        folder = Path(self.root, "build", suffix.strip(".").split(".")[0]).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CXX") or next(
            (name for name in ("g++", "c++", "clang++") if shutil.which(name)), "c++"
        )
        openmp = self._openmp_flags(compiler, folder)
        flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wextra"]
        flags += [f"-ffile-prefix-map={sources.parent}=.", *openmp, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        includes = [f"-isystem{path}" for path in (sysconfig.get_path("include"), get_include())]
        shared = ["-shared", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared", "-Wl,-s"]
        shared += shlex.split(os.environ.get("LDFLAGS", ""))

        module = folder / f"_C{suffix}"
        with (folder / "build.ninja").open("w") as file:
            ninja = Writer(file)
            command = f"{compiler} {shlex.join(flags)} $flags -MMD -MF $out.d -c $in -o $out"
            ninja.rule("compile", command, depfile="$out.d", deps="gcc")
            ninja.rule("link", f"{compiler} $in {shlex.join([*openmp, *shared])} -o $out")
            objects = []
            for name, isa_flags in INSTRUCTION_SETS.items():
                for kernel in KERNELS:
                    objects.append(str(folder / f"{kernel}_{name}.o"))
                    variables = {"flags": shlex.join([*isa_flags, f"-DSSL_CORE_ISA={name}"])}
                    source = str(sources / "cpu" / f"{kernel}.cpp")
                    ninja.build(objects[-1], "compile", source, variables=variables)
            for source in (sources / "cpu" / "dispatch.cpp", sources / "bindings.cpp"):
                objects.append(str(folder / f"{source.stem}.o"))
                ninja.build(objects[-1], "compile", str(source), variables={"flags": shlex.join(includes)})
            ninja.build(str(module), "link", objects)
        done = subprocess.run([Path(BIN_DIR, "ninja"), "-C", folder], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"{compiler} failed:\n{done.stdout[-4000:]}{done.stderr[-1000:]}")
        return module

    def _openmp_flags(self, compiler: str, folder: Path) -> list[str]:
        """Flags that this compiler can build several threads with; none, with a warning, where it cannot."""
        test = folder / "openmp.cpp"
        test.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        command = [compiler, "-fopenmp", str(test), "-o", str(folder / "openmp")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return ["-fopenmp"]
        self.app.display_warning(f"{compiler} has no OpenMP, so the compiled kernels will use one thread")
        return []
