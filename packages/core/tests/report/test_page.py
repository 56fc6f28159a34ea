"""A report as it is written by a run, and as a browser shows it."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ssl_tiny.train import main

from ssl_core.cli import main as ssl_core
from ssl_core.data import open_source
from ssl_core.evaluate import load_subject
from ssl_core.evaluate.encoder import run_data, run_views
from ssl_core.evaluate.online import decoded_side
from ssl_core.report import page, plots
from ssl_core.report.look import Part, look_at_runs
from ssl_core.report.plots import thumbnails
from ssl_core.views import make_view_specs

TRAIN = ["--config", "smoke", "--evaluate.k", "5", "--train.log_every", "2", "--train.steps", "20"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that wrote its report in the end, with decisions and a machine."""
    folder = tmp_path_factory.mktemp("report") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_core.pretrain._REPORT_IMAGES", 60)
        main([*TRAIN, "--report", "true", "--train.precision", "auto", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, which `.ci/run` installs."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(params=[1280, 400])
def opened(run, browser, request):
    """The report on a screen of that width without a network, and what went wrong."""
    wrong: list[str] = []
    with browser.new_context(viewport={"width": request.param, "height": 900}, offline=True) as context:
        shown = context.new_page()
        shown.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.on("request", lambda asked: wrong.append(asked.url) if asked.url.startswith("http") else None)
        shown.goto((run / "report.html").as_uri())
        shown.wait_for_selector("#map .bk-Figure")
        yield shown, wrong


@pytest.mark.slow
def test_a_browser_shows_it_without_a_network_or_an_error_and_without_scrolling_sideways(opened):
    shown, wrong = opened
    assert shown.evaluate("document.documentElement.scrollWidth") <= shown.viewport_size["width"]
    assert shown.locator("h1").count() == 1
    assert shown.locator("main h2").count() == shown.locator("nav a").count() == 8
    assert not shown.locator("img:not([alt])").count()
    assert shown.locator("#training .bk-Figure").count() == 7
    assert wrong == []


@pytest.mark.slow
def test_pointing_at_a_dot_shows_its_image_and_a_click_keeps_its_name(opened):
    shown, wrong = opened
    # Where the map's first image is on the screen, as Bokeh has it.
    place = """() => {
        const figures = Bokeh.documents.flatMap(each => [...each._all_models.values()])
        const renderer = figures.find(each => each.type == "GlyphRenderer" && each.data_source.data.thumbnail)
        const view = Bokeh.index.find_one_by_id
            ? [...Bokeh.index.all_views()].find(each => each.model === renderer) : null
        const {left, top} = view.plot_view.canvas_view.el.getBoundingClientRect()
        const data = renderer.data_source.data
        const [x] = view.coordinates.x_scale.v_compute([data.x0[0]])
        const [y] = view.coordinates.y_scale.v_compute([data.y0[0]])
        return {x: left + x, y: top + y, path: data.path[0]}
    }"""
    shown.locator("#map .bk-Figure").scroll_into_view_if_needed()
    shown.wait_for_timeout(200)
    at = shown.evaluate(place)
    shown.mouse.move(at["x"] - 3, at["y"])
    shown.mouse.move(at["x"], at["y"])
    image = shown.locator(".tip img").first
    image.wait_for()
    assert image.evaluate("image => image.complete && image.naturalWidth > 0")
    shown.mouse.click(at["x"], at["y"])
    assert at["path"] in shown.locator("#paths").input_value().split()
    assert wrong == []


def test_a_run_writes_what_was_decided_and_where(run):
    history = json.loads((run / "run.json").read_text())
    assert "CPU core" in history["machines"][0]
    assert [key for key, _, _ in history["decisions"]] == ["train.precision"]
    html = (run / "report.html").read_text()
    assert history["machines"][0] in html
    assert "a step takes float32" in html
    assert f"ssl-tiny-train --config {run / 'config.yaml'} --out {run}-again" in html


@pytest.mark.slow
def test_images_are_decoded_as_the_runs_own_knn_has_them(run, tmp_path):
    noise = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(noise.integers(0, 256, (128, 128), dtype=np.uint8)).save(tmp_path / f"{index}.jpg")
    data = replace(run_data(str(run)), source=str(tmp_path))
    look = look_at_runs([str(run)], data=data, images=5000, device="cpu", progress=False)
    subject = load_subject(str(run), data=data)

    def features(at_least):
        return subject.extract(open_source(data, at_least=at_least)).features

    as_trained = features(decoded_side(make_view_specs(run_views(str(run)))))
    assert not torch.equal(as_trained, features(16))  # of a smaller JPEG
    torch.testing.assert_close(look.bank.features["trained encoder"], as_trained, rtol=0, atol=0)


@pytest.mark.slow
def test_the_command_prints_what_each_encoder_is_worth_and_shows_runs_side_by_side(run, tmp_path, capsys):
    ssl_core(["report", str(run), "--images", "60", "--out", str(tmp_path / "x.html"), "--device", "cpu"])
    printed = capsys.readouterr().out
    for title in ("raw pixels", "random encoder", "trained encoder"):
        assert f"  {title:16} " in printed
    assert "ssl-tiny-train --config list" in printed
    other = shutil.copytree(run, tmp_path / "other")
    card = other / "backbone.json"
    card.write_text(card.read_text().replace("ssl-tiny", "of-a-script"))
    ssl_core(["report", str(other), str(run), "--images", "60", "--out", str(tmp_path / "two.html")])
    assert "-train" not in capsys.readouterr().out
    html = (tmp_path / "two.html").read_text()
    assert "<h1>Report on other, run</h1>" in html
    assert html.count('<th scope="col">other</th>') == 2  # what was trained, neighbors
    assert re.search(r"\d+ to \d+, p (0\.|1\.0|&lt;0\.)", html)


@pytest.mark.slow
def test_images_without_labels_have_a_map_and_no_classes(tmp_path, run):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(24):
        Image.new("L", (16, 16), 10 * index).save(folder / f"{index}.png")
    ssl_core(["report", str(run), "--data.source", str(folder), "--out", str(tmp_path / "x.html"), "--device", "cpu"])
    html = (tmp_path / "x.html").read_text()
    assert "Without labeled test images there are no accuracies." in html
    assert 'id="classes"' not in html
    assert "24 training images, close where their features are" in html
    assert "the nearest of 23 other training images" in html


@pytest.mark.parametrize("number", [1, 2])
def test_a_few_images_have_neighbors_and_no_map(tmp_path, run, number):
    for index in range(number):
        Image.new("L", (16, 16), 100 * index).save(tmp_path / f"{index}.png")
    ssl_core(["report", str(run), "--data.source", str(tmp_path), "--out", str(tmp_path / "x.html"), "--device", "cpu"])
    html = (tmp_path / "x.html").read_text()
    assert f"No map: it takes 10 images, and there are {number}." in html
    assert ("Not looked for: one image is alone." in html) == (number == 1)


def test_the_command_that_repeats_a_run_can_be_typed(run, tmp_path, monkeypatch):
    folder = shutil.copytree(run, tmp_path / "my run's")
    assert shlex.split(page.read_run(folder, "").command) == [
        *("ssl-tiny-train", "--config", str(folder / "config.yaml"), "--out", f"{folder}-again")
    ]
    monkeypatch.chdir(folder)
    assert page.read_run(Path(), "").command == page.read_run(folder, "").command
    card = folder / "backbone.json"
    card.write_text(card.read_text().replace("ssl-tiny", "of-a-script"))
    assert page.read_run(folder, "").command.startswith("python YOUR_METHOD.py --config ")


def refusal(*arguments, capsys):
    with pytest.raises(SystemExit):
        ssl_core(["report", *arguments, "--device", "cpu"])
    return capsys.readouterr().err


def test_what_cannot_be_reported_is_refused_in_one_line(run, tmp_path, capsys, monkeypatch):
    assert "not a run directory: it has no config.yaml" in refusal(str(tmp_path), capsys=capsys)
    shutil.copytree(run, tmp_path / "begun", ignore=shutil.ignore_patterns("backbone.json", "checkpoints"))
    assert "of a run that has not begun: no backbone.json in it" in refusal(str(tmp_path / "begun"), capsys=capsys)
    shutil.rmtree(tmp_path / "begun")
    assert "2 runs are shown in one file: say which, such as --out report.html" in refusal(
        str(run), str(run), capsys=capsys
    )
    assert "images must be 2 to 5,000, as many as a map shows, got 1" in refusal(
        str(run), "--images", "1", capsys=capsys
    )
    assert "got 5,001" in refusal(str(run), "--images", "5001", capsys=capsys)
    assert "there is no folder" in refusal(str(run), "--out", str(tmp_path / "none" / "x.html"), capsys=capsys)
    twice = [str(run), f"{run}/", "--out", str(tmp_path / "x.html")]
    assert f"{run}/ is given twice" in refusal(*twice, capsys=capsys)
    color = shutil.copytree(run, tmp_path / "color")
    card = json.loads((run / "backbone.json").read_text())
    (color / "backbone.json").write_text(json.dumps(card | {"channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}))
    assert f"{run} takes 1 and {color} takes 3" in refusal(str(run), str(color), *twice[2:], capsys=capsys)
    assert "holds no image" in refusal(str(run), "--data.test_source", str(tmp_path), capsys=capsys)
    bare = shutil.copytree(run, tmp_path / "bare")
    shutil.rmtree(bare / "checkpoints")
    assert "there is no checkpoint" in refusal(str(bare), capsys=capsys)
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    assert 'pip install "ssl-core[report]"' in refusal(str(run), capsys=capsys)


def test_a_run_that_asks_for_a_report_is_refused_without_the_library(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main([*TRAIN, "--report", "true", "--out", str(tmp_path / "run")])
    assert 'pip install "ssl-core[report]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_report_that_fails_harms_no_run(tmp_path, monkeypatch, caplog):
    def failing(*arguments, **options):
        raise ValueError("no images today")

    monkeypatch.setattr("ssl_core.pretrain.write_report", failing)
    main([*TRAIN, "--report", "true", "--out", str(tmp_path / "run")])
    assert "no report: no images today" in caplog.text
    assert (tmp_path / "run" / "backbone.safetensors").exists()


def test_names_of_classes_leave_room_for_the_plot_and_stay_apart():
    names = ["great white shark, white shark, man-eater", "great white shark, white whale", "cat"]
    plot = plots.by_class(names, {"x": {0: 0.1, 1: 0.2, 2: 0.3}}, "x")
    assert plot.y_range.factors == ["great white shark, wh... (0)", "great white shark, wh... (1)", "cat"]


def test_of_many_classes_the_plot_has_the_lowest_and_the_highest_and_says_so():
    scores = {label: label / 1000 for label in range(1000)}
    plot = plots.by_class([str(label) for label in scores], {"x": scores}, "x")
    assert plot.y_range.factors == [str(label) for label in (*range(40), *range(980, 1000))]
    assert plot.title.text == "the 40 lowest and 20 highest of 1,000 classes"
    assert plot.height < 1300


def test_thumbnails_of_many_images_are_smaller_so_that_they_fit(monkeypatch):
    noise = torch.rand(100, 3, 48, 48, generator=torch.Generator().manual_seed(0))  # nothing takes more room
    part = Part("", 100, [""] * 100, torch.zeros(100, dtype=torch.long), noise, {})
    whole = sum(map(len, thumbnails(part)))
    monkeypatch.setattr(plots, "_THUMBNAILS", whole / 4)
    assert sum(map(len, thumbnails(part))) < whole / 2
