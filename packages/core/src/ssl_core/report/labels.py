"""What labels say about the images of a report: how good each encoder is, and which classes it takes for each other."""

from collections import Counter
from typing import NamedTuple

from jaxtyping import Bool, Int64
from torch import Tensor

from ssl_core.evaluate import Features, knn_votes
from ssl_core.evaluate.compare import Row, comparison_rows, correctness
from ssl_core.evaluate.few_labels import fitting_shots
from ssl_core.report.look import Look

_EXAMPLES = 3


class Confusion(NamedTuple):
    """Images of one class that are taken for another.

    Attributes:
        true: class of the images.
        taken_for: class that the vote gives them.
        number: number of these images.
        examples: indices of some of them.
    """

    true: int
    taken_for: int
    number: int
    examples: list[int]


class Classified(NamedTuple):
    """The votes of a kNN on the labeled images that are shown.

    Attributes:
        known: indices of the labeled images in the bank.
        rows: indices of the labeled images among those shown.
        labels: class of each.
        predicted: by title of the encoder, the class that each is taken for.
        k: number of neighbors that voted.
        temperature: divisor in the weight of a vote.
    """

    known: Int64[Tensor, " m"]
    rows: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    predicted: dict[str, Int64[Tensor, " n"]]
    k: int
    temperature: float

    def is_right(self, title: str) -> Bool[Tensor, " n"]:
        """Whether the vote names the true class of each image."""
        return self.predicted[title] == self.labels

    def top1(self, title: str) -> float:
        """Fraction of the images whose class wins the vote."""
        return self.is_right(title).double().mean().item()

    def by_class(self, title: str) -> dict[int, float]:
        """Top-1 of each class that occurs."""
        right = self.is_right(title).double()
        return {label: right[self.labels == label].mean().item() for label in sorted({*self.labels.tolist()})}

    def confusions(self, title: str, number: int) -> list[Confusion]:
        """The pairs of classes that are confused most often, most frequent first."""
        predicted, labels = self.predicted[title].tolist(), self.labels.tolist()
        pairs = Counter((true, taken) for true, taken in zip(labels, predicted, strict=True) if true != taken)
        wrong = [(row, true, taken) for row, true, taken in zip(self.rows.tolist(), labels, predicted, strict=True)]
        return [
            Confusion(*pair, count, [row for row, *both in wrong if tuple(both) == pair][:_EXAMPLES])
            for pair, count in pairs.most_common(number)
        ]


def classified(look: Look, *, k: int, temperature: float) -> Classified | None:
    """The votes on the images shown by every encoder; None without labels or without test images.

    Args:
        look: images and their features.
        k: number of neighbors that vote, unless a class has fewer images in the bank on average.
        temperature: divisor in the weight of a vote.
    """
    if look.classes is None or not look.has_test:
        return None
    classes = len(look.classes)
    known = ((look.bank.labels >= 0) & (look.bank.labels < classes)).nonzero().flatten()
    rows = ((look.shown.labels >= 0) & (look.shown.labels < classes)).nonzero().flatten()
    if not len(known) or not len(rows):
        return None
    k = min(k, max(1, len(known) // classes))
    labels = look.bank.labels[known]
    predicted = {
        title: knn_votes(
            Features(look.bank.features[title][known], labels),
            look.shown.features[title][rows],
            k=k,
            temperature=temperature,
            num_classes=classes,
        ).argmax(dim=1)
        for title in look.shown.features
    }
    return Classified(known, rows, look.shown.labels[rows], predicted, k, temperature)


def compared(look: Look, votes: Classified, *, seed: int) -> list[Row]:
    """The tests of ``ssl-core compare`` on the images of a report; empty where there are too few of each class.

    Args:
        look: images and their features.
        votes: votes on the labeled ones.
        seed: seed of the draws of labels and of the bootstrap.
    """
    assert look.classes is not None
    labels = look.bank.labels[votes.known]
    counts = labels.bincount()
    if (counts > 0).sum() < 2 or counts.max() < 2 or len(votes.rows) < 2:
        return []
    found = {
        title: correctness(
            Features(look.bank.features[title][votes.known], labels),
            Features(look.shown.features[title][votes.rows], votes.labels),
            num_classes=len(look.classes),
            k=votes.k,
            shots=fitting_shots(labels),
            seed=seed,
        )[0]
        for title in look.shown.features
    }
    return comparison_rows(found, seed=seed)
