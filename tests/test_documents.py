"""Commands and options that documents, docstrings and messages name: they parse, and run on small made data."""

import ast
import doctest
import importlib
import itertools
import re
import shlex
import shutil
import tomllib
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from PIL import Image
from torch.distributed.run import get_args_parser

from ssl_core import cli, evaluate
from ssl_core.backbone import BackboneCard, save_backbone
from ssl_core.config import save_config
from ssl_core.detect.protocol import DETECTION_PROTOCOLS
from ssl_core.evaluate.plan import choose_protocol
from ssl_core.evaluate.transfer import TRANSFER_PROTOCOLS
from ssl_core.evaluate.voc07_protocol import VOC07_PROTOCOLS
from ssl_core.nn import EncoderConfig, make_encoder, stem_for
from ssl_core.pretrain import pretrain
from ssl_core.testing.recipes import parse, shrunk
from ssl_core.views import VIEW_OPS

ROOT = Path(__file__).parents[1]
TRAIN = {
    f"ssl-{file.parent.name.removeprefix('ssl_')}-train": importlib.import_module(f"{file.parent.name}.train")
    for file in sorted(ROOT.glob("packages/*/src/ssl_*/train.py"))
}
SETTINGS = [tomllib.loads(file.read_text()) for file in ROOT.glob("packages/*/pyproject.toml")]
EXTRAS = {each["project"]["name"]: {*each["project"].get("optional-dependencies", {})} for each in SETTINGS}

DOCUMENTS = [file for pattern in ("*.md", "docs/**/*.md", "packages/*/*.md") for file in sorted(ROOT.glob(pattern))]
SCRIPTS = [
    file for pattern in ("benchmarks/*.py", "docs/**/*.py", "examples/*.py") for file in sorted(ROOT.glob(pattern))
]
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))
PROTOCOLS = {
    "linear": evaluate.PROTOCOLS,
    "finetune": evaluate.FINETUNE_PROTOCOLS,
    "transfer": TRANSFER_PROTOCOLS,
    "voc07": VOC07_PROTOCOLS,
    "detection": DETECTION_PROTOCOLS,
}
BY_PATH = {"ids": lambda file: str(file.relative_to(ROOT))}

OURS = r"(?:ssl-\w+-train |ssl-core [a-z]).*"
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:{OURS}|(?:torchrun|nox|pip|python3?) )")
SHELL = ("", "sh", "bash", "shell", "console")  # languages of blocks that hold commands
# Options that are not our commands', and what else looks like one.
FOREIGN = {
    "embedding-atlas": "a viewer",
    "moco/detection/train_net.py": "MoCo's",
    "sbatch": "Slurm's",
    "--config-file": "detectron2's",
    "--image": "embedding-atlas's",
    "--jaxtyping-packages": "pytest's, by jaxtyping",
    "--kill-on-bad-exit": "srun's",
    "--max-restarts": "torchrun's",
    "--method.base.mocov2.queue.length": "a part of --method.base",
    "--method.encoder": "where a checkpoint has weights",
    "--method.momentum_schedule": "of an earlier version",
    "--method.no_such_option": "what a check tries",
    "--method.predictor_dim": "of an earlier version",
    "--minutes": "of tests/soak.py",
    "--nnodes": "torchrun's",
    "--no-build-isolation": "pip's",
    "--node.key": "any",
    "--nproc-per-node": "torchrun's",
    "--num-gpus": "detectron2's",
    "--option": "any",
    "--rdzv-backend": "torchrun's",
    "--rdzv-conf": "torchrun's",
    "--rdzv-endpoint": "torchrun's",
    "--rdzv-id": "torchrun's",
    "--require-gpu": "pytest's, in conftest.py",
    "--shm-size": "docker's",
    "--shutdown-timeout": "torchrun's",
    "--signal": "sbatch's",
    "--signals-to-handle": "torchrun's",
    "--strict": "mypy's",
}
# A command that needs one of these is parsed and not run; Python is not run.
NOT_RUN = {
    "detectron2": "a ResNet of full depth; on those its own tests run it",
    "fiftyone": "a database",
    "moco_v2_800ep_pretrain.pth.tar": "a download",
    "runs/dcl": "what an example trains",
    "s3://bucket/photos": "a bucket; on a made one its own tests run it",
    "timm:resnet50": "a download",
    "torchrun": "several processes",
    "voc07": "a data set; on a made one its own tests run it",
}
# Documents whose Python reads what their commands write: both run at night, in their order.
IN_ORDER = (ROOT / "docs/export.md",)
# What a command runs with, to take a second.
SHORTER = {"linear": ["--epochs", "2"], "finetune": ["--epochs", "1"]}


def fences(file):
    """The fenced blocks of a document, each with its language."""
    return re.findall(r"^ *```(\S*).*?\n(.*?)^ *```$", file.read_text(), re.M | re.S)


def blocks(file, *languages):
    """The fenced blocks of a document that are in one of some languages."""
    return [text for language, text in fences(file) if language in languages]


def split(text):
    """The commands of a text, one in a line or several with && between them, as words."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        for is_and, command in itertools.groupby(words, "&&".__eq__):
            if not is_and:
                yield list(command)


def block_commands(file):
    """The commands in the blocks of a document."""
    return [words for text in blocks(file, *SHELL) for words in split(text)]


def inline_commands(file):
    """The commands within the lines of a document, but those of ssl-core that stand there without their arguments."""
    spans = re.findall(r"`([^`\n]+)`", file.read_text())
    commands = [words for span in spans if COMMAND.match(span) for words in split(span)]
    return [words for words in commands if words[0] != "ssl-core" or (len(words) > 3 and words[3][:2] != "--")]


def docstring_commands(file):
    """The commands that are lines of a module's docstring."""
    lines = (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()
    return [words for line in lines if COMMAND.match(line) for words in split(line)]


def runs(words):
    """Whether a command can run on small made data."""
    is_ours = words[0] in (*TRAIN, "ssl-core") and words[1:] != ["--config", "list"]
    return is_ours and not NOT_RUN.keys() & {*words}


def literals(file):
    """The texts of a module: docstrings, messages, and whatever else is a string; values of f-strings are VALUE."""
    tree = ast.parse(file.read_text())
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def options_of_config(config, prefix=""):
    """Every name that a training command takes as an option."""
    for field in fields(config):
        yield f"--{prefix}{field.name}"
        if is_dataclass(value := getattr(config, field.name)):
            yield from options_of_config(value, f"{prefix}{field.name}.")


def training_options():
    options = {"--config", "--resume", "--help", "--version", "--print_config", "--device"}
    return options.union(*(options_of_config(parse(train, "--config", "smoke")) for train in TRAIN.values()))


core_parser = cache(cli._parser)


def core_options():
    parsers = [core_parser(name, function) for name, function in (cli.COMMANDS | cli.EVALUATIONS).items()]
    return {"--version", "--help"}.union(*(parser._option_string_actions for parser in parsers))


def script_options(file):
    """The options of a script, with whether it needs them, and those that it has from the module beside it."""
    text = file.read_text()
    options = script_options(file.with_name("machine.py")) if "from machine import" in text else {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            options[node.args[0].value] = any(keyword.arg == "required" for keyword in node.keywords)
    return options


def sessions():
    return {
        node.name for node in ast.parse((ROOT / "noxfile.py").read_text()).body if isinstance(node, ast.FunctionDef)
    }


# -- what is right


def check(words):
    """Refuse a command that would be refused."""
    program, *arguments = itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words)
    match Path(program).name:
        case "torchrun":
            parsed = get_args_parser().parse_args(arguments)
            script, started = parsed.training_script, parsed.training_script_args
            if script.endswith(".py"):
                check_python(script, *started)
            elif script == "ssl_core":
                check(["ssl-core", *started])
            else:
                check_training(f"{script.replace('_', '-')}-train", started)
        case "ssl-core":
            with patch.object(cli, "_call"), patch.object(cli, "_parser", core_parser):
                cli.main(arguments)
            if "--protocol" in arguments:
                choose_protocol(PROTOCOLS[arguments[1]], arguments[arguments.index("--protocol") + 1])
        case "nox":
            named = {*itertools.takewhile("--".__ne__, arguments)} - {"-s", "-l"}
            assert named <= sessions(), f"no session is called {named - sessions()}"
        case "pip":
            assert arguments[0] == "install"
            missing = [
                path
                for option, path in itertools.pairwise(arguments)
                if option in ("-c", "-e") or path.startswith("./")
                if not (ROOT / path).exists()
            ]
            assert not missing, f"there is no {missing} to install"
        case "python" | "python3":
            check_python(*arguments)
        case program if program not in FOREIGN:
            check_training(program, arguments)


def check_training(program, arguments):
    assert program in TRAIN, f"{program} is no command that a test knows"
    if not arguments or arguments == ["--config", "list"]:
        return
    if arguments[0] == "--resume" and not (run := Path(arguments[1])).exists():
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "last.pt").touch()
        save_config(parse(TRAIN[program], "--config", "smoke"), run / "config.yaml")
    assert parse(TRAIN[program], *arguments).views, f"{program} {shlex.join(arguments)} has no views"


def check_python(script, *arguments):
    if script in FOREIGN:
        return
    if script == "-m":
        assert arguments[0] in {"venv", "ssl_core", *(train.__package__ for train in TRAIN.values())}
        return
    if "Command(" in (ROOT / script).read_text():
        parse(importlib.import_module(Path(script).stem), *arguments)
        return
    options = script_options(ROOT / script)
    given = {word for word in arguments if word.startswith("--")}
    needed = {name for name, required in options.items() if required}
    assert given <= options.keys(), f"{script} has no option {given - options.keys()}"
    assert needed <= given, f"{script} needs {needed - given}"


def unknown_names(text, known):
    """What a text names and is not there: options (as ``--data.root`` or ``data.root``), commands, packages, extras."""
    nodes = "|".join({option[2:].partition(".")[0] for option in known if "." in option})
    options = re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text)
    options += [f"--{name}" for name in re.findall(rf"(?<![\w./-])((?:{nodes})\.[a-z_0-9.]*\w)(?![\w(])", text)]
    files = re.compile(r".*\.(json|md|npy|png|py|yaml)")
    yield from {option for option in options if not files.fullmatch(option)} - known
    for name, extra in re.findall(r"(ssl-[a-z]+)\[(\w+)\]", text):
        if extra not in EXTRAS[name]:
            yield f"{name}[{extra}]"
    for program, command in re.findall(r"(?:`|pip install )(ssl-[\w-]+)((?: [a-z][a-z0-9]*){0,2})", text):
        if program not in (*EXTRAS, *TRAIN):
            yield program
        match command.split() if program == "ssl-core" else []:
            case ["eval", by, *_] if by not in cli.EVALUATIONS:
                yield f"ssl-core eval {by}"
            case [name, *_] if name not in ("eval", *cli.COMMANDS):
                yield f"ssl-core {name}"


# -- small made data


class TinyCIFAR:
    """As torchvision reads CIFAR: random pixels, in ten classes."""

    classes = tuple("abcdefghij")

    def __init__(self, root, train, download):
        length = 320 if train else 160
        self.data = np.random.default_rng(train).integers(256, size=(length, 32, 32, 3), dtype=np.uint8)
        self.targets = [index % 10 for index in range(length)]


def save_images(folder, count):
    pixels = np.random.default_rng(0).integers(256, size=(count, 24, 32, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        (parent := folder / f"class {index % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(parent / f"{index}.bmp")


def pretrain_small(config, make_method, **options):
    """Train for an epoch at sizes that take a second; what `auto` and a budget do has tests of its own."""
    stem = stem_for(config.encoder, max(size for view in config.views for size in view.sizes))  # of the whole views
    config = replace(shrunk(config), auto=False, budget=None)
    training = replace(config.train, batch_size=32, epochs=1, precision="float32", device="cpu")
    encoder = replace(config.encoder, stem=stem)
    changes = {"train": training, "encoder": encoder, "data": replace(config.data, workers=0)}
    if hasattr(config, "neighbours"):  # of CLIM, which would search for them after the fifth epoch
        changes["neighbours"] = replace(config.neighbours, start_epoch=0)
    return pretrain(replace(config, **changes), make_method, **options)


def make_small(patches, folder):
    """Work in a folder, where training is short and CIFAR-10 small."""
    patches.chdir(folder)
    patches.setattr("torchvision.datasets.CIFAR10", TinyCIFAR)
    patches.setattr("ssl_core.command.pretrain", pretrain_small)
    patches.setattr("ssl_core.pretrain.has_report", lambda: False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with whatever the documents' commands read, by the names that they give it."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("photos", "labelled", "FOLDER"):
        save_images(folder / name, 260)
    with pytest.MonkeyPatch.context() as patches:
        make_small(patches, folder)
        TRAIN["ssl-sce-train"].main(["--config", "cifar10", "--data.root", "data", "--out", "runs/x"])
    shutil.copy(ROOT / "packages/sce/src/ssl_sce/recipes/smoke.yaml", folder / "NAME")
    for name in ("runs/y", "RUN"):
        shutil.copytree(folder / "runs/x", folder / name)
    return folder


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """A folder with runs of a whole ResNet-50."""
    folder = tmp_path_factory.mktemp("backbones")
    encoder = make_encoder(EncoderConfig("resnet50"), channels=3, image_size=224)
    card = BackboneCard("resnet50", 3, 224, (0.5,) * 3, (0.3,) * 3, 2048, "imagenet", {}, recipe="ssl-any")
    for run in ("runs/x", "runs/resnet50"):
        (folder / run).mkdir(parents=True)
        save_backbone(folder / run / "backbone.safetensors", encoder, card)
    return folder


# -- the tests


@pytest.mark.parametrize(
    ("file", "commands"),
    [
        pytest.param(file, commands, id=str(file.relative_to(ROOT)))
        for files, find in (
            (DOCUMENTS, lambda file: [*block_commands(file), *inline_commands(file)]),
            ([*SOURCES, *SCRIPTS], docstring_commands),
        )
        for file in files
        if (commands := find(file))
    ],
)
def test_commands_in_texts_parse(file, commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in commands:
        check(words)


def test_what_texts_name_exists():
    known = training_options() | core_options() | FOREIGN.keys()
    known |= {option for file in SCRIPTS for option in script_options(file)}
    texts = [(file, file.read_text()) for file in DOCUMENTS]
    texts += [(file, text) for file in SOURCES for text in literals(file)]
    unknown = [(f"{file.relative_to(ROOT)}", name) for file, text in texts for name in unknown_names(text, known)]
    assert not unknown


def test_the_papers_of_all_methods_are_cited():
    cited = {
        each["url"].rpartition("/")[2] for each in yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    }
    papers = [file for file in (ROOT / "docs/papers").glob("*.md") if file.name != "README.md"]
    assert {re.search(r"arXiv (\d+\.\d+)", file.read_text())[1] for file in papers} == cited


def test_the_evidence_recipes_are_alike():
    """One net, and as many steps and images: what benchmarks/evidence.py compares."""
    recipes = [yaml.safe_load(file.read_text()) for file in ROOT.glob("packages/*/src/*/recipes/evidence_cpu.yaml")]
    assert len(recipes) == len(TRAIN)
    for node in ("encoder", "data", "optim", "train"):
        assert all(recipe[node] == recipes[0][node] for recipe in recipes), node


def test_what_workflows_run_exists():
    files = [ROOT / ".ci/run", *ROOT.glob(".github/workflows/*.yml")]
    named = {
        name
        for file in files
        for group in re.findall(r"nox -s ((?:\w+ ?)+)", file.read_text())
        for name in group.split()
    }
    assert named - sessions() == set()


@pytest.mark.parametrize(
    "file", [file for file in DOCUMENTS if blocks(file, "python") and file not in IN_ORDER], **BY_PATH
)
@pytest.mark.slow
def test_the_python_of_documents_runs(file, backbones, monkeypatch):
    monkeypatch.chdir(backbones)
    for text in blocks(file, "python"):
        if ">>>" not in text:
            exec(text, {})
    with patch.dict(VIEW_OPS):  # to which a document adds
        assert doctest.testfile(str(file), module_relative=False).failed == 0


@pytest.mark.nightly
@pytest.mark.parametrize("file", [file for file in DOCUMENTS if any(map(runs, block_commands(file)))], **BY_PATH)
def test_the_commands_of_documents_run_and_what_they_print_parses(file, made, tmp_path, monkeypatch, capsys):
    make_small(monkeypatch, shutil.copytree(made, tmp_path / "made"))
    names = {}
    for language, text in fences(file):
        if language == "python" and file in IN_ORDER and not NOT_RUN.keys() & {*text.split()}:
            exec(text, names)
        for program, *arguments in filter(runs, split(text) if language in SHELL else ()):
            if program == "ssl-core":
                cli.main(arguments + [option for name in SHORTER.keys() & {*arguments} for option in SHORTER[name]])
            else:
                TRAIN[program].main(arguments)
    for command in re.findall(OURS, capsys.readouterr().out):
        check(shlex.split(command))
