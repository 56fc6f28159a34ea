"""A report on one run or several: a page that any browser opens, without a network."""

import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from PIL import Image

from ssl_core.backbone import BackboneCard
from ssl_core.data import DataConfig
from ssl_core.duration import duration
from ssl_core.evaluate import tsne_points
from ssl_core.evaluate.compare import Row, p_text
from ssl_core.evaluate.encoder import check_channels, check_distinct, find_card
from ssl_core.evaluate.tsne import LEAST_TSNE, MOST_TSNE, PERPLEXITY
from ssl_core.files import check_file, write_atomically
from ssl_core.report.labels import Classified, classified, compared
from ssl_core.report.look import PIXELS, Look, Part, address, described, look_at_runs
from ssl_core.report.neighbors import neighbors
from ssl_core.report.odd import odd_ones
from ssl_core.report.verdict import Verdict, verdicts
from ssl_core.train.log import read_metrics

_CONFUSIONS = 8
_WIDEST = 1180  # pixels of a picture in the page
_CLASSES = {"healthy": "", "still improving": "warn", "too short": "warn"}  # any other verdict is bad


def has_report() -> bool:
    """Whether the libraries that write a report are installed."""
    return all(find_spec(name) is not None for name in ("bokeh", "jinja2"))


def check_report() -> None:
    """Find the libraries that write a report before any work is done.

    Raises:
        ImportError: if one is not installed.
    """
    if not has_report():
        raise ImportError('bokeh, which plots in the report, is not installed: pip install "ssl-core[report]"')


@dataclass(frozen=True)
class _Run:
    """A run directory as the page shows it."""

    title: str
    folder: Path
    config: dict[str, Any]
    card: BackboneCard
    records: list[dict[str, Any]]
    history: dict[str, Any]

    @property
    def verdicts(self) -> list[Verdict]:
        return verdicts(self.records)

    @property
    def command(self) -> str:
        package = self.card.recipe
        is_script = find_spec(package.replace("-", "_")) is None  # a method in a file of one's own
        folder = self.folder if self.folder.name.strip(".") else self.folder.resolve()
        options = shlex.join(["--config", f"{folder / 'config.yaml'}", "--out", f"{folder}-again"])
        return f"{'python YOUR_METHOD.py' if is_script else f'{package}-train'} {options}"

    @property
    def machine(self) -> str:
        return ", then ".join(self.history.get("machines", ["a machine that was not written down"]))

    @property
    def decisions(self) -> list[list[str]]:
        decisions: list[list[str]] = self.history.get("decisions", [])
        return decisions

    @property
    def views(self) -> str:
        """The gallery of views as the address of an ``<img>``."""
        if not (self.folder / "views.png").is_file():
            return ""
        with Image.open(self.folder / "views.png") as image:
            shown = image.convert("RGB")
        shown.thumbnail((_WIDEST, 10 * _WIDEST))
        file = io.BytesIO()
        shown.save(file, format="WEBP", quality=80)
        return address(file.getvalue())

    def result(self, name: str, key: str) -> str:
        """A number of an evaluation in percent; a dash where there was none."""
        path = self.folder / f"{name}.json"
        return f"{100 * json.loads(path.read_text())[key]:.1f} %" if path.is_file() else "-"

    def facts(self) -> dict[str, str]:
        """Rows of the table of what was trained."""
        config, steps = self.config, [record for record in self.records if "loss" in record]
        seconds, last = 0.0, 0
        for step in steps:
            seconds += (step["step"] - last) * config["train"]["batch_size"] / step["images_per_s"]
            last = step["step"]
        versions = ", ".join(f"{name} {number}" for name, number in self.card.versions.items())
        return {
            "method": self.card.method or self.card.recipe,
            "images": str(config["data"]["source"]),
            "encoder": f"{self.card.architecture}, input {self.card.channels} x {self.card.image_size} px, "
            f"{self.card.num_features} features",
            "length": f"{last:,} steps of {config['train']['batch_size']} images"
            + (f", {steps[-1]['epoch']:.1f} epochs" if steps else ""),
            "time": f"{duration(seconds)} of training steps",
            "machine": self.machine,
            "kNN, all test images": self.result("knn", "top1"),
            "linear, all test images": self.result("linear", "last"),
            "versions": versions,
        }


class Report(NamedTuple):
    """A report that was written.

    Attributes:
        path: file of the page.
        look: images that were looked at.
        votes: votes of a kNN on those with labels; None without labels or test images.
    """

    path: Path
    look: Look
    votes: Classified | None


def read_run(folder: Path, title: str) -> _Run:
    """What a run directory says of itself.

    Raises:
        FileNotFoundError: if it is none.
    """
    for name in ("config.yaml", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a run directory: it has no {name}")
    history = folder / "run.json"
    return _Run(
        title,
        folder,
        yaml.safe_load((folder / "config.yaml").read_text()),
        find_card(str(folder)),
        read_metrics(folder),
        json.loads(history.read_text()) if history.is_file() else {},
    )


def write_report(
    runs: Sequence[str],
    *,
    data: DataConfig | None = None,
    images: int = 5000,
    out: str | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Write what runs have learned as one HTML file that needs no network.

    Args:
        runs: run directories, side by side.
        data: images to look at; None takes those that all runs were trained on.
        images: largest number of images of a split that are looked at, sampled by a seed; 2 to 5,000.
        out: file to write; None is ``report.html`` in the run directory, where there is one run.
        device: device that computes the features.
        seed: seed of the choice of images, of the random encoder and of the map.
        progress: whether bars are shown.

    Raises:
        FileNotFoundError: for what is not a run directory, or has no checkpoint.
        ImportError: without the extra ``report``.
        OSError: if the file cannot be written.
        ValueError: for several runs without ``out``, a run that is given twice, runs of different images, or fewer than
            two images.
    """
    check_report()
    if not 2 <= images <= MOST_TSNE:
        raise ValueError(f"images must be 2 to {MOST_TSNE:,}, as many as a map shows, got {images:,}")
    if out is None and len(runs) > 1:
        raise ValueError(f"{len(runs)} runs are shown in one file: say which, such as --out report.html")
    path = Path(runs[0]) / "report.html" if out is None else Path(out)
    check_distinct(runs)
    read = [read_run(Path(run), run) for run in runs]
    check_channels({run.title: run.card for run in read})
    check_file(path)
    look = look_at_runs(runs, data=data, images=images, device=device, seed=seed, progress=progress)
    named = [replace(run, title=title) for title, run in zip(look.runs, read, strict=True)]
    votes = classified(look, k=named[0].config["evaluate"]["k"], temperature=named[0].config["evaluate"]["temperature"])
    html = _page(named, look, votes, seed)
    write_atomically(path, lambda file: file.write(html.encode()))
    return Report(path, look, votes)


def _page(runs: Sequence[_Run], look: Look, votes: Classified | None, seed: int) -> str:
    from bokeh.embed import components
    from bokeh.resources import Resources
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    from ssl_core.report import plots

    drawn = plots.curves({run.title: run.records for run in runs})
    models = {f"curve{number}": plot for number, (_, plot) in enumerate(drawn)}
    try:
        places = {title: _places(look.shown, title, seed) for title in look.runs}
        models |= {f"map{number}": plot for number, plot in enumerate(plots.image_maps(look, places))}
        no_map = ""
    except ValueError as error:
        no_map = f"No map: {error}."
    try:
        odd, nothing_odd = odd_ones(look), ""
    except ValueError as error:
        odd, nothing_odd = None, f"Not looked for: {error}."
    rows: list[Row] = []
    if votes is not None:
        assert look.classes is not None
        scores = {title: votes.by_class(title) for title in votes.predicted}
        models["by_class"] = plots.by_class(look.classes, scores, look.runs[0])
        rows = compared(look, votes, seed=seed)
        if (curve := plots.few_labels(rows)) is not None:
            models["few_labels"] = curve
    script, parts = components(models)
    found = [run.facts() for run in runs]
    sections = [
        ("summary", "What was trained"),
        ("training", "How training went"),
        ("views", "What the encoder saw"),
        ("neighbors", "Neighbors"),
        ("map", "Map"),
        ("odd", "Odd ones"),
        *([("worth", "Was it worth it?"), ("classes", "Classes")] if votes else []),
    ]
    page = Environment(loader=PackageLoader("ssl_core.report", "."), autoescape=True).get_template("page.html")
    return page.render(
        title=f"Report on {', '.join(look.runs) if len(runs) > 1 else runs[0].folder.resolve().name}",
        lead=_lead(runs, look, votes),
        resources=Markup(Resources(mode="inline", components=["bokeh", "bokeh-widgets"]).render()),
        scripts=Markup(script),
        sections=sections,
        runs=runs,
        facts=[(name, [each[name] for each in found]) for name in found[0]],
        classes=_CLASSES,
        curves=[(curve, Markup(parts[f"curve{number}"])) for number, (curve, _) in enumerate(drawn)],
        neighbors=neighbors(look),
        encoders=list(look.shown.features),
        names=look.classes,
        query_kind="test" if look.has_test else "training",
        bank_kind="training" if look.has_test else "other training",
        bank_size=f"{len(look.bank.labels) - (not look.has_test):,}",
        maps=[Markup(part) for name, part in parts.items() if name.startswith("map")],
        map_size=f"{len(look.shown.labels):,}",
        no_map=no_map,
        odd=odd,
        nothing_odd=nothing_odd,
        votes=votes,
        tests=list(dict.fromkeys(row.test for row in rows)),
        results={title: [row for row in rows if row.encoder == title] for title in look.shown.features},
        p_text=p_text,
        few_labels=Markup(parts.get("few_labels", "")),
        by_class=Markup(parts.get("by_class", "")),
        confusions=_confusions(look, votes) if votes else [],
        k=votes and votes.k,
        temperature=votes and f"{votes.temperature:g}",
        num_tested=votes and f"{len(votes.labels):,}",
        num_bank=votes and f"{len(votes.known):,}",
        footer=f"Looked at {len(look.bank.labels):,} of {look.bank.whole:,} images of {look.bank.name} (training)"
        + (
            f" and {len(look.shown.labels):,} of {look.shown.whole:,} of {look.shown.name} (test)"
            if look.has_test
            else ""
        )
        + f", sampled by seed {seed}; {PIXELS} at {look.shown.pixels.shape[-1]} px.",
    )


def _lead(runs: Sequence[_Run], look: Look, votes: Classified | None) -> str:
    """The first sentence: what the encoders are worth, and whether training went well."""
    judged = "; ".join(
        (f"{run.title}: " if len(runs) > 1 else "Training: ") + ", ".join(verdict.kind for verdict in run.verdicts)
        for run in runs
    )
    if votes is None:
        return f"{judged}. Without labeled test images there are no accuracies."
    worth = ", ".join(f"{title} {100 * votes.top1(title):.1f} %" for title in votes.predicted)
    return f"{judged}. kNN top-1: {worth}."


def _places(part: Part, title: str, seed: int) -> Any:
    if len(part.labels) < LEAST_TSNE:
        raise ValueError(f"it takes {LEAST_TSNE} images, and there are {len(part.labels)}")
    perplexity = min(PERPLEXITY, (len(part.labels) - 1) / 3)
    return tsne_points(part.features[title], perplexity=perplexity, seed=seed)


def _confusions(look: Look, votes: Classified) -> list[dict[str, Any]]:
    assert look.classes is not None
    return [
        {
            "true": look.classes[each.true],
            "taken_for": look.classes[each.taken_for],
            "number": each.number,
            "examples": [described(look, look.shown, row) for row in each.examples],
        }
        for each in votes.confusions(look.runs[0], _CONFUSIONS)
    ]
