"""The odd ones among the images of a report: near-duplicates, and images that are like no other."""

from typing import NamedTuple

import torch

from ssl_core.evaluate import near_duplicates, nearest_others, outliers, whitening
from ssl_core.evaluate.near_duplicates import NEIGHBOURS
from ssl_core.report.look import Look, described

_GROUPS, _GROUP, _OUTLIERS = 8, 6, 12


class OddOnes(NamedTuple):
    """Images that a person should look at, as the page shows them.

    Attributes:
        threshold: least cosine of near-duplicates.
        reason: derivation of the threshold in words.
        number: number of groups that were found.
        groups: images of some groups.
        outliers: images that are farthest from all others, farthest first.
    """

    threshold: float
    reason: str
    number: int
    groups: list[list[dict[str, str]]]
    outliers: list[dict[str, str]]


def odd_ones(look: Look) -> OddOnes:
    """Near-duplicates and outliers by the first run's features, over all images that were looked at.

    Raises:
        ValueError: for one image, or if all features are the same.
    """
    parts = [look.bank, look.shown] if look.has_test else [look.bank]
    unit = torch.cat([part.features[look.runs[0]] for part in parts])
    if len(unit) < 2:
        raise ValueError("one image is alone")
    unit = whitening(unit).unit(unit)
    similarity, index = nearest_others(unit, min(NEIGHBOURS, len(unit) - 1))
    found = near_duplicates(unit, similarity, index)

    def shown(number: int) -> dict[str, str]:
        place, kind = (
            (number, "training") if number < len(look.bank.labels) else (number - len(look.bank.labels), "test")
        )
        image = described(look, parts[kind == "test"], place)
        return image | {"alt": f"{image['alt']} ({kind})"} if look.has_test else image

    return OddOnes(
        found.threshold,
        found.reason,
        len(found.groups),
        [[shown(number) for number in group[:_GROUP]] for group in found.groups[:_GROUPS]],
        [shown(number) for number in outliers(similarity, _OUTLIERS)],
    )
