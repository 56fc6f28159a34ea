"""The nearest neighbors of some images by pixels, a random and a trained encoder."""

import torch
from jaxtyping import Int64
from torch import Tensor

from ssl_core.evaluate import nearest
from ssl_core.report.look import Look, described

_QUERIES, _NEIGHBORS = 12, 5


def choose_queries(labels: Int64[Tensor, " n"], rows: int) -> list[int]:
    """Images to show, without looking at what comes out: the first of each class, then the second, and so on.

    Without labels, images evenly spaced.

    Example:
        >>> choose_queries(torch.tensor([1, 1, 0, 2, 0]), 4)
        [2, 0, 3, 4]
    """
    if (labels < 0).all():
        return torch.linspace(0, len(labels) - 1, min(rows, len(labels))).round().long().tolist()
    seen: dict[int, int] = {}
    order = []
    for index, label in enumerate(labels.tolist()):
        order.append((seen.get(label, 0), label, index))
        seen[label] = seen.get(label, 0) + 1
    return [index for _, label, index in sorted(order) if label >= 0][:rows]


def neighbors(look: Look) -> list[tuple[dict[str, str], list[list[dict[str, str]]]]]:
    """For each of some images its description, and for each encoder those of its nearest ones in the bank."""
    shown, bank = look.shown, look.bank
    queries = choose_queries(shown.labels, _QUERIES)
    wanted = min(_NEIGHBORS, len(bank.labels) - (not look.has_test))
    columns = []
    for title in shown.features:
        index = nearest(bank.features[title], shown.features[title][queries], wanted + (not look.has_test))[1]
        rows = index.tolist()
        if not look.has_test:  # itself is not its neighbor
            rows = [
                [other for other in row if other != query][:wanted] for query, row in zip(queries, rows, strict=True)
            ]
        columns.append(rows)
    return [
        (
            described(look, shown, query),
            [[described(look, bank, other, query=int(shown.labels[query])) for other in rows[row]] for rows in columns],
        )
        for row, query in enumerate(queries)
    ]
