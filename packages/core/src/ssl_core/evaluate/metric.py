"""The metric of a set: top-1, its mean over the classes, or the mean of 11-point average precisions."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ssl_core.data import TRANSFER_SETS, DataConfig, Images
from ssl_core.data.transfer_sets import Metric
from ssl_core.data.voc import VOC_NAME
from ssl_core.evaluate.accuracy import balanced_accuracy, check_classes, label_ranks
from ssl_core.evaluate.average_precision import Curve, mean_average_precision


def metric_score(
    metric: Metric, scores: Float64[Tensor, "n k"], labels: Int64[Tensor, "n *k"], curve: Curve = "every image"
) -> float:
    """Value of a metric, in [0, 1].

    Args:
        metric: name of the metric: ``top1``; ``mean_per_class``, the mean over the classes that occur of their top-1;
            or ``map11``, the mean over these of their 11-point average precision.
        scores: (n k) score of each class.
        labels: (n) class of each image, or for ``map11`` (n k), where 1 is of a class, and anything else not.
        curve: points of the curve of ``map11``, as :func:`average_precision` takes them.
    """
    if metric == "map11":
        signs = torch.where(labels == 1, 1, -1)
        return mean_average_precision(scores.numpy(), signs.numpy(), "11-point", curve=curve).mean
    is_right = label_ranks(scores, labels) < 1
    return balanced_accuracy(is_right, labels) if metric == "mean_per_class" else is_right.double().mean().item()


def fitting_metric(asked: Metric | None, data: DataConfig, labelled: Images, test: Images) -> Metric:
    """The metric that is asked for, or else the usual metric of a named set, or ``top1``.

    Args:
        asked: name of the metric; None leaves the choice to the set.
        data: settings of the images.
        labelled: training images.
        test: test images.

    Raises:
        ValueError: for a metric of one class an image where images are of several, missing labels, or classes of the
            test images that training images lack.
    """
    known = TRANSFER_SETS.get(data.source) if isinstance(data.source, str) else None
    metric: Metric = asked or (known.metric if known else "top1")
    if data.source != VOC_NAME:
        check_classes(labelled, test)
    elif metric != "map11":
        raise ValueError(f"metric {metric} is of one class an image, and those of {VOC_NAME} show several: give map11")
    return metric
