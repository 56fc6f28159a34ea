"""The interactive figures of a report, by Bokeh."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from bokeh.model import Model
from bokeh.models import ColumnDataSource, CustomJS, HoverTool, Range1d, TapTool
from bokeh.models.widgets import RadioButtonGroup
from bokeh.palettes import Turbo256
from bokeh.plotting import figure
from bokeh.transform import dodge
from jaxtyping import Float32
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has none
from torch import Tensor

from ssl_core.evaluate.compare import Row
from ssl_core.evaluate.tsne import COLORS, shortened
from ssl_core.report.look import Look, Part, address

RUN_COLORS = COLORS
_BASELINES = ["#b9ac70", "#94a4a2"]  # of pixels and of the random encoder
_GRAY = "#6b6b6b"
_CLUSTERS = 10
_LOWEST, _HIGHEST = 40, 20  # classes of a plot
# Bytes of all thumbnails of a map, before base64 makes them a third longer.
_THUMBNAILS = 5_000_000


class Curve(NamedTuple):
    """A figure of the log.

    Attributes:
        name: number of the log that it shows.
        title: heading.
        reference: number of the log that the first is compared with; empty without one.
        meaning: sentence below the figure.
        scale: factor from the log's unit.
    """

    name: str
    title: str
    reference: str
    meaning: str
    scale: float = 1.0


CURVES = [
    Curve("loss", "Loss", "chance_loss", "Dashed: what guessing gives."),
    Curve("knn_top1", "kNN top-1, %", "", "Measured between epochs, on labeled images.", 100.0),
    Curve(
        "embedding_std",
        "Spread of embeddings",
        "embedding_std_even",
        "Standard deviation of a dimension; dashed: 1 / sqrt(d), spread evenly. Near 0 all images are alike.",
    ),
    Curve("effective_rank", "Effective rank", "", "Number of dimensions that a batch of embeddings fills."),
    Curve("queue_fill", "Queue filled, %", "", "Part of the queue that holds keys of images.", 100.0),
    Curve("lr", "Learning rate", "", "As the schedule has it."),
    Curve("images_per_s", "Images a second", "", "Of training steps, without evaluations."),
    Curve("data_wait", "Waiting for images, %", "", "Part of the time in which training had no batch.", 100.0),
]


def curves(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[Curve, Model]]:
    """A figure for each number of :data:`CURVES` that some run has logged, with a line for each run.

    Args:
        records: records of each run's log, by its title.
    """
    drawn = []
    for curve in CURVES:
        lines = {
            title: [record for record in run if curve.name in record and "step" in record]
            for title, run in records.items()
        }
        if not any(lines.values()):
            continue
        plot = _figure(curve.title, "step")
        for color, (title, points) in zip(_cycle(RUN_COLORS), lines.items(), strict=False):
            _line(plot, points, curve.name, curve.scale, color, title if len(lines) > 1 else "")
            if curve.reference:
                known = [point for point in points if curve.reference in point]
                _line(plot, known, curve.reference, curve.scale, color, "", line_dash="dashed", alpha=0.7)
        if len(lines) > 1:
            _legend_below(plot)
        if curve.name in ("queue_fill", "data_wait"):
            plot.y_range = Range1d(start=0, end=105)
        drawn.append((curve, plot))
    return drawn


def _line(
    plot: Any,
    points: Sequence[Mapping[str, Any]],
    name: str,
    scale: float,
    color: str,
    title: str,
    **style: Any,
) -> None:
    source = ColumnDataSource(
        {"x": [point["step"] for point in points], "y": [scale * point[name] for point in points]}
    )
    legend = {"legend_label": title} if title else {}
    line = plot.line("x", "y", source=source, color=color, line_width=2, **style, **legend)
    if len(points) < 30:
        plot.scatter("x", "y", source=source, color=color, size=4)
    tips = [*([("run", title)] if title else []), (name, "@y{0.0000}"), ("step", "@x{0,0}")]
    plot.add_tools(HoverTool(renderers=[line], tooltips=tips))


def _figure(title: str, x: str, **options: Any) -> Any:
    """A figure that is as wide as its place in the page."""
    plot = figure(
        title=title,
        height=220,
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,box_zoom,reset,save",
        toolbar_location="right",
        **options,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.xaxis.axis_label = x
    return plot


def _legend_below(plot: Any) -> None:
    """Move the legend to where it hides nothing."""
    plot.add_layout(plot.legend[0], "below")
    plot.legend.ncols = 2
    plot.height += 50


def _cycle(colors: Sequence[str]) -> list[str]:
    return [*colors] * 10


def image_maps(look: Look, points: Mapping[str, Float32[Tensor, "n 2"]]) -> list[Model]:
    """A map of the images by each run's encoder, with thumbnails on hover and one selection in all.

    Colors are those of the labels, or of clusters of the first run's features; with labels the last element is the
    choice between them. A click on an image adds its name to the page's text field ``paths``.

    Args:
        look: images that are shown.
        points: place of each image, by title of the encoder.
    """
    shown = look.shown
    columns: dict[str, Any] = {"path": shown.identifiers, "thumbnail": thumbnails(shown)}
    clusters = _clusters(shown.features[look.runs[0]])
    columns["cluster"] = [f"cluster {number + 1}" for number in clusters]
    groups = {"clusters": ("cluster_color", _colors(clusters, int(clusters.max()) + 1))}
    tips = "<br>@cluster"
    if look.classes is not None:
        labels = shown.labels.numpy()
        columns["label"] = [look.classes[label] if label >= 0 else "no label" for label in labels]
        groups = {"labels": ("label_color", _colors(labels, len(look.classes))), **groups}
        tips = f"<br>@label{tips}"
    columns |= dict(groups.values())
    for number, place in enumerate(points.values()):
        columns[f"x{number}"], columns[f"y{number}"] = place.T.numpy()
    source = ColumnDataSource(columns)
    tooltip = f'<div class="tip"><img src="@thumbnail" alt="" width="96" height="96"><div>@path{tips}</div></div>'
    plots: list[Model] = []
    dots: list[Any] = []
    first = next(iter(groups.values()))[0]
    for number, title in enumerate(points):
        plot = figure(
            title=title if len(points) > 1 else None,
            match_aspect=True,
            height=520 if len(points) == 1 else 380,
            sizing_mode="stretch_width",
            tools="pan,wheel_zoom,box_zoom,reset,save",
            active_scroll=None,
        )
        plot.toolbar.logo = None
        plot.axis.visible = False
        plot.grid.visible = False
        drawn = plot.scatter(
            f"x{number}", f"y{number}", source=source, size=6, line_color=None, fill_color=first, fill_alpha=0.8
        )
        glyph: Any = drawn.nonselection_glyph
        glyph.fill_alpha = 0.35
        dots.append(drawn)
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=tooltip), TapTool(renderers=[drawn]))
        plots.append(plot)
    keep = """
        const field = document.getElementById("paths")
        for (const i of source.selected.indices) {
            const path = source.data.path[i]
            if (!field.value.split("\\n").includes(path)) field.value += path + "\\n"
        }"""
    source.selected.js_on_change("indices", CustomJS(args={"source": source}, code=keep))
    if len(groups) == 1:
        return plots
    buttons = RadioButtonGroup(labels=[f"colors of {name}" for name in groups], active=0)
    columns_of = [name for name, _ in groups.values()]
    recolor = """
        for (const dot of dots)
            for (const glyph of [dot.glyph, dot.nonselection_glyph, dot.selection_glyph])
                if (glyph && glyph.fill_color) glyph.fill_color = {field: columns[cb_obj.active]}"""
    buttons.js_on_change("active", CustomJS(args={"dots": dots, "columns": columns_of}, code=recolor))
    return [*plots, buttons]


def thumbnails(part: Part) -> list[str]:
    """Each image as the address of an ``<img>``, small enough that all together are 5 MB at most."""
    size = part.pixels.shape[-1]
    for side in (size, 32, 24, 16):
        tried = [len(part.thumbnail(index, side=side)) for index in range(0, len(part.labels), 50)]
        if sum(tried) / len(tried) * len(part.labels) <= _THUMBNAILS:
            break
    return [address(part.thumbnail(index, side=side)) for index in range(len(part.labels))]


def _clusters(features: Float32[Tensor, "n f"]) -> Any:
    unit = F.normalize(features, dim=1).numpy()
    with threadpool_limits(limits=1):  # sums of threads end in other last bits
        # scikit-learn's has no types.
        model: Any = KMeans(min(_CLUSTERS, len(unit)), n_init=1, random_state=0)  # type: ignore[no-untyped-call]
        return model.fit_predict(unit)


def _colors(groups: Any, number: int) -> list[str]:
    """A color for each image by its group; gray for none."""
    if number <= len(COLORS):
        palette = list(COLORS)
    else:
        palette = [Turbo256[round(index * 255 / (number - 1))] for index in range(number)]
        palette = [palette[index] for index in np.argsort([index * 7919 % number for index in range(number)])]
    return [palette[group] if group >= 0 else _GRAY for group in groups]


def few_labels(rows: Sequence[Row]) -> Model | None:
    """Top-1 by the number of labels a class, with a dot for each draw; None where there are no such tests.

    Args:
        rows: results of the tests.
    """
    curve = [row for row in rows if row.test.split()[-1] in ("label", "labels")]
    if not curve:
        return None
    ticks = list(dict.fromkeys(row.test.split()[0] for row in curve))
    plot: Any = _figure("", "labels a class", x_range=ticks)
    plot.height = 300
    plot.yaxis.axis_label = "top-1, %"
    encoders = dict.fromkeys(row.encoder for row in curve)
    for color, encoder in zip(_cycle([*_BASELINES, *RUN_COLORS]), encoders, strict=False):
        points = [row for row in curve if row.encoder == encoder]
        mean = ColumnDataSource({"x": ticks, "y": [100 * row.top1 for row in points]})
        line = plot.line("x", "y", source=mean, color=color, line_width=2, legend_label=encoder)
        draws = [(row.test.split()[0], 100 * value) for row in points for value in row.draws]
        plot.scatter(*zip(*draws, strict=True), color=color, size=5, alpha=0.5)
        plot.add_tools(HoverTool(renderers=[line], tooltips=[("", encoder), ("labels", "@x"), ("top-1", "@y{0.0} %")]))
    _legend_below(plot)
    drawn: Model = plot
    return drawn


def by_class(names: Sequence[str], scores: Mapping[str, Mapping[int, float]], order: str) -> Model:
    """Top-1 of each class by several encoders, as dots on a line for each class.

    Args:
        names: names of all classes.
        scores: top-1 of each class, by title of the encoder.
        order: title of the encoder by which classes are sorted; of more than 60 its lowest 40 and highest 20.
    """
    labels = sorted(scores[order], key=scores[order].__getitem__)
    heading = ""
    if len(labels) > _LOWEST + _HIGHEST:  # as many as can be read
        heading = f"the {_LOWEST} lowest and {_HIGHEST} highest of {len(labels):,} classes"
        labels = [*labels[:_LOWEST], *labels[-_HIGHEST:]]
    rows = [_unique(names, label) for label in labels]
    plot: Any = _figure(heading, "top-1, %", y_range=rows)
    plot.height = 90 + 18 * len(rows)  # the axis, and the classes
    places = np.linspace(0.25, -0.25, len(scores))  # above each other, since several may have the same top-1
    for place, color, (title, values) in zip(places, _cycle([*_BASELINES, *RUN_COLORS]), scores.items(), strict=False):
        source = ColumnDataSource({"x": [100 * values[label] for label in labels], "y": rows})
        y = dodge("y", place, range=plot.y_range)
        dots = plot.scatter("x", y, source=source, size=7, color=color, legend_label=title)
        plot.add_tools(HoverTool(renderers=[dots], tooltips=[("", title), ("class", "@y"), ("top-1", "@x{0.0} %")]))
    plot.x_range = Range1d(start=-2, end=102)
    _legend_below(plot)
    drawn: Model = plot
    return drawn


def _unique(names: Sequence[str], label: int) -> str:
    """Name of a class, short enough to leave room for the plot, with its number where two have the same."""
    short = [shortened(name) for name in names]
    return short[label] if short.count(short[label]) == 1 else f"{short[label]} ({label})"
