"""Plots queue_loss.png: what the two numbers of queue attention are, for keys on a circle.

python docs/figures/queue_loss.py
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ssl_core.ops import queue_attention

TEMPERATURE, TARGET_TEMPERATURE = 0.6, 0.3
STUDENT_COLOR, TEACHER_COLOR = "#1f5fa8", "#c4551a"


def on_circle(degrees: Tensor) -> Tensor:
    return torch.stack([torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))], dim=1)


def draw_side(axes: Axes, query: Tensor, keys: Tensor, temperature: float, color: str, title: str) -> Tensor:
    """The keys with areas that are their softmax weights; returns their weighted mean."""
    lse, expectation = queue_attention(query[None], keys, temperature)
    weights = torch.exp(keys @ query / temperature - lse)
    axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.8"))
    axes.scatter(*keys.T, s=12 + 2200 * weights, color=color, alpha=0.45, linewidths=0)
    axes.scatter(*keys.T, s=8, color="0.2")
    axes.annotate("", query, (0, 0), arrowprops={"arrowstyle": "-|>", "color": "0.1", "lw": 1.6})
    axes.text(*(1.3 * query), "query", ha="center", va="center")
    axes.scatter(*expectation.T, marker="X", s=110, color=color, edgecolors="white", zorder=3)
    axes.text(*(expectation[0] - torch.tensor([0.0, 0.2])), "E", color=color, ha="center", va="center", weight="bold")
    axes.set_title(f"{title}\nlse = {float(lse):.2f}")
    return expectation[0]


def main() -> None:
    torch.manual_seed(3)
    keys = on_circle(torch.tensor([-170.0, -140, -104, -75, -48, -20, 4, 26, 49, 71, 93, 118, 150]))
    student, teacher = (on_circle(torch.tensor([angle]))[0] for angle in (12.0, 58.0))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.5, 3.9))
    student_mean = draw_side(left, student, keys, TEMPERATURE, STUDENT_COLOR, "student, temperature 0.6")
    teacher_mean = draw_side(middle, teacher, keys, TARGET_TEMPERATURE, TEACHER_COLOR, "teacher, temperature 0.3")
    right.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.8"))
    right.scatter(*keys.T, s=8, color="0.2")
    right.annotate("", student, (0, 0), arrowprops={"arrowstyle": "-|>", "color": "0.1", "lw": 1.6})
    right.text(*(1.3 * student), "query", ha="center", va="center")
    for mean, color in ((student_mean, STUDENT_COLOR), (teacher_mean, TEACHER_COLOR)):
        right.scatter(*mean, marker="X", s=110, color=color, edgecolors="white", zorder=3)
    right.annotate("", teacher_mean, student_mean, arrowprops={"arrowstyle": "-|>", "color": "#2a7a2a", "lw": 2.2})
    right.set_title("descent: towards the teacher's mean\n(E teacher - E student) / temperature")
    for axes in (left, middle, right):
        axes.set(xlim=(-1.2, 1.55), ylim=(-1.2, 1.35), aspect="equal")
        axes.axis("off")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
