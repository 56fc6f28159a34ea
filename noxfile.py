"""Sessions of the whole repository: ``nox -l`` lists them, ``nox -s tests`` runs every package's tests."""

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests"]

ROOT = Path(__file__).parent
# Core first: the method packages are installed on top of it.
PACKAGES = sorted(
    (file.parent.name for file in ROOT.glob("packages/*/pyproject.toml")),
    key=lambda name: (name != "core", name),
)
OLDEST_TORCH = ["torch==2.11.*", "torchvision==0.26.*"]


def install(session: nox.Session, *packages: str, extras: tuple[str, ...] = ()) -> None:
    """Install packages of this repository in editable mode, core always, with their test dependencies."""
    groups: list[str] = []
    for package in packages:
        groups += nox.project.dependency_groups(nox.project.load_toml(f"packages/{package}/pyproject.toml"), "test")
    editable = [part for name in dict.fromkeys(("core", *packages)) for part in ("-e", f"packages/{name}")]
    session.install(*editable, *dict.fromkeys(groups), *extras)


def install_wheel(session: nox.Session, env: dict[str, str]) -> None:
    """Build core with these environment variables, and install it beside what its tests need."""
    session.install(*nox.project.dependency_groups(nox.project.load_toml("packages/core/pyproject.toml"), "test"))
    session.install("--no-cache", "--reinstall-package", "ssl-core", "./packages/core", env=env)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Train SCE on images that ship with scikit-learn (about 3 minutes on 2 cores) and show what it learnt."""
    session.install("-e", "packages/core", "-e", "packages/sce")
    session.run("ssl-sce-train", "--config", "quickstart", "--out", "runs/quickstart", *session.posargs)
    session.run("ssl-core", "report", "runs/quickstart")


@nox.session
@nox.parametrize("package", [nox.param(name, id=name) for name in PACKAGES])
def tests(session: nox.Session, package: str) -> None:
    """Run the tests and the documented examples of each package, or of one: nox -s "tests(sce)"."""
    install(session, package)
    session.run("pytest", f"packages/{package}", *session.posargs)


@nox.session(default=False)
@nox.parametrize("package", [nox.param(name, id=name) for name in PACKAGES])
def tests_oldest(session: nox.Session, package: str) -> None:
    """Run the tests with the oldest torch that the packages allow."""
    install(session, package, extras=tuple(OLDEST_TORCH))
    session.run("pytest", f"packages/{package}", *session.posargs)


@nox.session(default=False)
def tests_interpret(session: nox.Session) -> None:
    """Run the op tests of the Triton kernels through Triton's interpreter, on the CPU (about 5 minutes)."""
    install(session, "core")
    session.run("pytest", "packages/core/tests/ops", "-k", "triton", *session.posargs, env={"TRITON_INTERPRET": "1"})


@nox.session(default=False)
def tests_without_compiler(session: nox.Session) -> None:
    """Install core where there is no C++ compiler, and run the op tests on plain PyTorch."""
    install_wheel(session, env={"CXX": "/no/such/compiler"})
    session.run(
        "python", "-c", "from ssl_core.ops import implementations as f; assert f()['queue_attention']['cpu'] == 'tiled'"
    )
    session.run("pytest", "packages/core/tests/ops", *session.posargs)


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
    session.run("pytest", "-s", "packages/core/tests/ops", "-k", "avx or generic", *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format and style of all code."""
    session.install("ruff>=0.15,<0.18")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of every package's sources, strictly."""
    install(session, *PACKAGES, extras=("mypy>=1.18", "types-PyYAML", "types-tqdm"))
    session.run("mypy", *(f"packages/{name}/src" for name in PACKAGES))


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build every sdist and a wheel from it, install from those wheels alone, and train each method."""
    session.install("build[uv]", "twine", "uv")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for name in PACKAGES:
        # Without further options `build` makes the sdist and then the wheel from the sdist.
        session.run("python", "-m", "build", "--installer", "uv", "--outdir", str(dist), f"packages/{name}")
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    clean = Path(session.create_tmp()).resolve() / "clean"
    session.run("python", "-m", "venv", "--clear", str(clean))
    # By their paths: looked up by name, a wheel of the same version could come from uv's cache. CLIM needs one faiss.
    wheels = [f"{path}[cpu]" if "clim" in path.name else str(path) for path in sorted(dist.glob("*.whl"))]
    session.run("uv", "pip", "install", "--python", str(clean / "bin" / "python"), *wheels)
    scripts = [nox.project.load_toml(f"packages/{name}/pyproject.toml")["project"]["scripts"] for name in PACKAGES]
    with session.chdir(session.create_tmp()):
        # Away from the checkout, so that only what the wheels hold can be imported.
        for command in (command for of_package in scripts for command in of_package):
            if command.endswith("-train"):
                train = [str(clean / "bin" / command), "--config", "smoke", "--out", str(clean / "runs" / command)]
                session.run(*train, external=True)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmarks at quick settings and print their tables."""
    install(session, *PACKAGES, extras=("faiss-cpu", "lightly", "matplotlib", "kornia", "albumentations"))
    for file in sorted(ROOT.glob("benchmarks/bench_*.py")):
        session.run("python", str(file), "--quick", *session.posargs)
