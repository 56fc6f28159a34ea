from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from ssl_core.config import (
    changed_values,
    config_difference,
    give_way,
    given_options,
    parse_config,
    refuse_changed,
    save_config,
    to_dict,
)


@dataclass(frozen=True)
class Optim:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True)
class View:
    size: int = 224
    count: int = 1


@dataclass(frozen=True)
class Settings:
    optim: Optim = field(default_factory=Optim)
    views: list[View] = field(default_factory=list)
    source: str | list[str] = "digits"
    method: dict[str, dict[str, Any]] = field(default_factory=dict)
    out: str | None = None
    resume: str | None = None


@pytest.fixture
def recipes(tmp_path):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "small.yaml").write_text("# A small recipe.\noptim: {lr: 0.2}\n")
    (folder / "large.yaml").write_text("# A large recipe.\noptim: {lr: 0.4}\n")
    return folder


@pytest.fixture
def parse(recipes):
    def parse(*arguments: str) -> Settings:
        return parse_config(Settings, list(arguments), prog="train", description="Train.", recipes=recipes)

    return parse


def test_a_recipe_is_found_by_name_and_a_file_by_path(parse, recipes):
    assert parse("--config", "small").optim.lr == 0.2
    assert parse(f"--config={recipes / 'large.yaml'}").optim.lr == 0.4


def test_an_option_overrides_the_recipe(parse):
    settings = parse("--config", "small", "--optim.betas", "[0.8, 0.9]", "--optim.lr", "0.3")
    assert settings == Settings(Optim(0.3, (0.8, 0.9)))


def test_views_on_the_command_line_take_nothing_from_those_of_the_recipe(parse, recipes):
    (recipes / "views.yaml").write_text("# Two views.\nviews: [{size: 32, count: 2}, {size: 16}]\n")
    assert parse("--config", "views", "--views", "[{size: 8}, {count: 3}]").views == [View(8, 1), View(224, 3)]


def test_several_values_of_one_option_are_a_list(parse):
    assert parse("--source", "a.parquet", "b.parquet", "--optim.lr", "1").source == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.learning_rate", "1"], "optim.learning_rate"),
        (["--optim.l", "1"], "--optim.l"),
        (["--optim.lr", "fast"], "optim.lr"),
        (["--config", "smal"], "did you mean 'small'"),
        (["--config"], "--config needs one value"),
        (["--resume", "nowhere"], "nowhere: not a run directory"),
        (["--optim.lrr", "1"], "--optim.lrr is no option; did you mean optim.lr?"),
        (["--optm.lr", "1"], "--optm.lr is no option; did you mean optim.lr?"),
        (["--lr", "1"], "--lr is no option; did you mean optim.lr?"),
        (["--optim.weight", "1"], "--optim.weight is no option; optim has betas, lr"),
        (["--wandb", "x"], "--wandb is no option; a configuration has method, optim, out, resume, source, views"),
        (["--optim", "{lrr: 1}"], "--optim.lrr is no option; did you mean optim.lr?"),
        (["--optim", "adam"], "--optim holds options (betas, lr) and cannot be adam"),
        (["--optim", "{lr: 1"], "--optim, line 1: expected ',' or '}', but got '<stream end>'"),
        (["--optim", "{lr: 1, lr: 2}"], "--optim, line 1: lr stands there twice"),
        (["--optim", "{lr: null}"], "--optim.lr cannot be null"),
        (["--views[0].size", "3"], "--views[0].size is too deep; give the whole node, as --views '{...}'"),
        (["--optim.lr", "1:30"], "--optim.lr, line 1: 1:30 is 90 in YAML; write the number that is meant"),
        (["--out", "#x"], """--out #x: YAML reads nothing there; quote it once more: --out '"#x"'"""),
        (["--views.0.size", "3"], "--views.0.size is too deep"),
        (["--source="], "--source has an empty value, as an unset variable gives"),
        (["--out", ""], "--out has an empty value"),
        (["--method.base.rate", "1"], "--method.base.rate is too deep; give the whole node, as --method '{...}'"),
        (["--method.queue_length", "8"], "method.queue_length is from an earlier version"),
        (["--method.momentum", "0.9"], "recipes have momentum.value inside method in its place"),
        (["--method.projector.out_dim", "8"], "method.projector.out_dim is from an earlier version"),
        (["--method", "{queue_length: 8}"], "recipes have queue.length inside method in its place"),
        (["--method.projector", "{out_dim: 8}"], "recipes have projector beside method in its place"),
    ],
    ids=[
        "unknown key",
        "abbreviated key",
        "wrong type",
        "misspelt recipe",
        "no value",
        "no run",
        "misspelt name",
        "misspelt node",
        "name without its node",
        "other name",
        "other node",
        "misspelt in a mapping",
        "text for a node",
        "open mapping",
        "twice in a mapping",
        "null in a mapping",
        "inside a list",
        "base 60",
        "comment",
        "inside a list by a dot",
        "empty",
        "empty text",
        "inside a mapping",
        "earlier queue",
        "earlier momentum",
        "earlier head",
        "earlier queue in a mapping",
        "earlier head as a mapping",
    ],
)
def test_a_wrong_command_line_is_an_error_that_names_it(parse, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("train: error: ")
    assert said.endswith("(train --help lists the options)\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("optim: {lr: 0.1, lrr: 0.9}", ": optim.lrr is no option; did you mean optim.lr?"),
        ("optim: {lr: 1}\noptim: {lr: 2}", ", line 2: optim stands there twice"),
        ("method:\n  a: {rate: 1}\n  a: {rate: 2}", ", line 3: a stands there twice"),
        ("optim: {lr: null}", ": optim.lr cannot be null"),
        ("optim: {lr: ~}", ": optim.lr cannot be null"),
        ("optim:", ": optim holds options (betas, lr) and cannot be null"),
        ("optim: 3", ": optim holds options (betas, lr) and cannot be 3"),
        ("optim: {lr: 010}", ", line 1: 010 is 8 in YAML; write the number that is meant, or quote it for a text"),
        ("optim: {lr: 1:30}", ", line 1: 1:30 is 90 in YAML"),
        ("optim: {lr: 1:30.5}", ", line 1: 1:30.5 is 90.5 in YAML"),
        ("out: 123", ": out 123 is no text; quote it"),
        ("out: on", ": out True is no text; quote it"),
        ("", " holds null instead of options, such as `seed: 0`"),
        ("# nothing but a comment", " holds null instead of options"),
        ("- a\n- b", " holds [a, b] instead of options"),
        ("just text", " holds just text instead of options"),
        ("optim:\n\tlr: 1", r", line 2: found character '\t' that cannot start any token"),
        ("optim: {lr: 1", ", line 1: expected ',' or '}', but got '<stream end>'"),
        ("out: a\n---\nout: b", ", line 2: but found another document"),
        ("!!python/object/apply:os.mkdir [executed]", ", line 1: could not determine a constructor for the tag"),
        ("config: other.yaml", ": config is no option"),
        (b"PK\x03\x04\x80", " is not a YAML file"),
    ],
)
def test_a_file_that_says_what_it_may_not_mean_is_refused_in_one_line(parse, tmp_path, capsys, content, message):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as stopped:
        parse("--config", str(file))
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"train: error: {file}{message}" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "lr", "out"),
    [
        ("optim: {lr: 1e-3}\nout: null", 1e-3, None),
        ("optim: {lr: 1E-3}\nout: ~", 1e-3, None),
        ("optim: {lr: '0.2'}\nout: None", 0.2, "None"),
        ("optim: {lr: 1}\nout: '010'", 1.0, "010"),
        ("optim: {<<: {lr: 3}}\nout: 2024-13-45", 3.0, "2024-13-45"),
        ("\ufeffoptim: &shared {lr: 0x10}\nout: a b", 16.0, "a b"),
        ('{"optim": {"lr": 5}}', 5.0, None),
    ],
)
def test_a_file_means_what_it_says(parse, tmp_path, content, lr, out):
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    settings = parse("--config", str(tmp_path / "mine.yaml"))
    assert (settings.optim.lr, settings.out) == (lr, out)


def test_options_win_over_a_recipe_wherever_they_stand_and_the_last_of_two_wins(parse):
    assert parse("--optim.lr", "0.3", "--config", "small").optim.lr == 0.3
    assert parse("--config", "small", "--config", "large").optim.lr == 0.4
    assert parse("--optim.lr", "0.3", "--optim.lr", "0.5").optim.lr == 0.5


def test_help_lists_every_option(parse, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(
        option in said
        for option in (
            "usage: train --data.source IMAGES [--budget 10m] [options]",
            "--config",
            "--resume",
            "--optim.lr",
            "--views",
        )
    )


@pytest.mark.parametrize("name", ["moco.pth", "run/checkpoints/last.pt"])
def test_a_checkpoint_in_no_run_is_sent_where_it_belongs(parse, tmp_path, capsys, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(SystemExit):
        parse("--resume", str(tmp_path / name))
    assert f"(config.yaml missing); --encoder.weights {tmp_path / name} starts from" in capsys.readouterr().err


def test_a_configuration_of_an_earlier_version_is_refused_in_one_sentence(parse, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text("method: {momentum: {value: 0.9}, queue_length: 4096}\n")
    with pytest.raises(SystemExit):
        parse("--config", str(file))
    message = capsys.readouterr().err
    assert f"{file}: method.queue_length is from an earlier version" in message
    assert "recipes have queue.length inside method in its place" in message


def test_settings_without_effect_are_refused_by_name_and_nodes_by_the_number_inside():
    names = ["optim", "out"]
    refuse_changed(Settings(source="a"), names, "without training")
    with pytest.raises(ValueError, match=r"^optim.lr 0.3 has no effect without training; leave it at 0.1$"):
        refuse_changed(Settings(Optim(0.3)), names, "without training")
    with pytest.raises(ValueError, match=r"^out there has no effect without training; leave it at null$"):
        refuse_changed(Settings(out="there"), names, "without training")


def test_a_run_directory_in_place_of_its_configuration_is_sent_there(parse, tmp_path, capsys):
    save_config(parse("--config", "small"), tmp_path / "config.yaml")
    with pytest.raises(SystemExit):
        parse("--config", str(tmp_path))
    assert f"is a run directory; its configuration is --config '{tmp_path / 'config.yaml'}'" in capsys.readouterr().err


def test_a_saved_configuration_reads_back_the_same(parse, tmp_path):
    settings = parse("--config", "small", "--source", "a", "b")
    save_config(settings, tmp_path / "config.yaml")
    assert parse("--config", str(tmp_path / "config.yaml")) == settings


@pytest.mark.parametrize("named", ["", "checkpoints/epoch_0002.pt"], ids=["a run", "a checkpoint"])
def test_resume_reads_the_configuration_of_the_run_but_not_where_it_lay(parse, tmp_path, monkeypatch, named):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("last.pt", "epoch_0002.pt"):
        (run / "checkpoints" / name).touch()
    save_config(Settings(Optim(0.7), out="elsewhere"), run / "config.yaml")
    for path in (str(run / named), f"~/run/{named}"):
        assert parse("--resume", path) == Settings(Optim(0.7), resume=path)
    assert parse("--resume", str(run / named), "--out", "b").out == "b"


def test_a_run_that_is_resumed_where_it_begins_needs_no_checkpoint_the_first_time(parse, tmp_path):
    run = tmp_path / "run"
    command = ["--config=small", "--resume", str(run), "--out", f"{tmp_path}/a/../run", "--source", "a", "b"]
    begun = parse(*command)
    assert begun == parse("--config=small", "--out", begun.out, "--source", "a", "b")
    (run / "checkpoints").mkdir(parents=True)
    save_config(Settings(Optim(0.7), out="elsewhere"), run / "config.yaml")
    assert parse(*command) == begun  # killed before its first checkpoint
    (run / "checkpoints" / "last.pt").touch()
    assert parse(*command, "--config=small").resume == str(run)
    for other in ([], ["--out", "elsewhere"]):
        with pytest.raises(SystemExit):
            parse("--resume", str(tmp_path / "none"), *other)


def test_a_configuration_in_the_home_folder_is_found(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_config(Settings(Optim(0.7)), tmp_path / "mine.yaml")
    assert parse("--config=~/mine.yaml").optim.lr == 0.7


def test_difference_names_each_key_but_those_that_cannot_change_the_numbers():
    old = yaml.safe_load(yaml.safe_dump(to_dict(Settings(out="here"))))
    new = to_dict(Settings(Optim(0.3), source=["x"], out="there"))
    assert config_difference({"data": {"source": "a"}}, {"data": {"source": "b"}}) == []
    assert config_difference(old, new) == ["optim.lr: 0.1 -> 0.3", "source: digits -> ['x']"]
    assert config_difference({"train": {"device": "cpu"}}, {"train": {"device": "cuda"}}) == []
    assert config_difference({"data": {"renderer": "cpu"}}, {"data": {"renderer": "device"}}) == []
    assert config_difference({"train": {"epochs": 1}}, {"train": {"epochs": 2}}) == ["train.epochs: 1 -> 2"]


def test_a_value_that_a_dataclass_refuses_is_an_error_of_the_command(recipes, capsys):
    @dataclass(frozen=True)
    class Positive:
        lr: float = 0.1

        def __post_init__(self) -> None:
            if self.lr <= 0:
                raise ValueError(f"lr must be positive, got {self.lr}")

    with pytest.raises(SystemExit) as stopped:
        parse_config(Positive, ["--lr", "-1"], prog="train", description="Train.", recipes=recipes)
    assert stopped.value.code == 2
    assert "lr must be positive, got -1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "gave_way"),
    [
        (["--config", "small"], {"optim.lr": 0.1, "source": "digits"}),
        (["--config", "small", "--source", "digits"], {"optim.lr": 0.1}),
        (["--source=digits", "--optim", "{lr: 0.1}"], {}),
        (["--optim", "optim.yaml", "--views+", "{size: 8}"], {"source": "digits"}),
    ],
)
def test_what_a_command_line_gives_does_not_give_way(arguments, gave_way, caplog):
    with caplog.at_level("INFO"):
        config = give_way(Settings(), {"optim.lr": 0.3, "source": "b"}, given_options(arguments), "for a reason")
    assert changed_values(Settings(), config) == gave_way
    assert ("optim.lr: 0.3 instead of 0.1, for a reason" in caplog.text) is ("optim.lr" in gave_way)


def test_nothing_gives_way_where_all_counts_as_given():
    assert give_way(Settings(), {"optim.lr": 0.3}, None, "") == Settings()
