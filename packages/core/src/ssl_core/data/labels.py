"""Labels from the values of a column or the names of class folders: classes in their order, and -1 for none."""

import logging
import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_WHOLE = re.compile(r"(-?\d+)(\.0*)?")  # pandas writes whole numbers as 1.0 where one of them is missing


def labels_of(
    values: Sequence[Any], where: str, names: Sequence[str] = ()
) -> tuple[Int64[Tensor, " n"], tuple[str, ...] | None]:
    """Labels and the names of the classes; the log says what has none.

    Conventions: null, NaN, empty text and negative whole numbers are no label (-1); 1, 1.0 and "1" are one class.
    Where a value can be no class, such as 0.37 or a list, nothing has a label: pretraining needs none.

    Args:
        values: values of the column: whole numbers, text or truth values.
        where: names of column and file for a person.
        names: names of the classes 0, 1, ... that whole numbers stand for; empty where values name their class.

    Returns:
        (n) positions in the classes, and the classes: ``names``, or the values that occur, in order. None if nothing
        has a label.
    """
    return coded_labels(np.arange(len(values)), values, where, names)


def coded_labels(
    codes: NDArray[Any], values: Sequence[Any], where: str, names: Sequence[str] = ()
) -> tuple[Int64[Tensor, " n"], tuple[str, ...] | None]:
    """As :func:`labels_of`, of values that are written once each.

    Args:
        codes: (n) position in ``values`` of each image.
        values: values that occur.
        where: names of column and file for a person.
        names: names of the classes 0, 1, ... that whole numbers stand for.
    """
    try:
        texts, classes = _texts_and_classes(values, names)
    except ValueError as error:
        logger.warning("%s: %s, so there are no labels (data.label_column names another column)", where, error)
        texts, classes = [None] * len(values), []
    position: dict[str | None, int] = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([position.get(text, -1) for text in texts], dtype=torch.int64)[torch.from_numpy(codes)]
    if num_missing := int((labels < 0).sum()):
        logger.info("%s: %d of %d images have no label", where, num_missing, len(labels))
    return labels, tuple(classes) if num_missing < len(labels) else None


def ordered(names: Iterable[str]) -> list[str]:
    """Names of classes in the order of their labels: by number if all are whole numbers, else by letter."""
    by_letter = sorted(names)
    return sorted(by_letter, key=int) if all(name.isdecimal() for name in by_letter) else by_letter


def relabelled(source: Any, classes: Sequence[str]) -> Int64[Tensor, " n"]:
    """A source's labels as positions in another list of classes, which has all of the source's."""
    position = {name: number for number, name in enumerate(classes)}
    table = torch.tensor([position[name] for name in source.classes or ()] + [-1])
    return table[source.labels]


def _texts_and_classes(values: Sequence[Any], names: Sequence[str]) -> tuple[list[str | None], list[str]]:
    texts = [_text(value) for value in values]
    known = {text for text in texts if text is not None}
    if not all(_NUMBER.fullmatch(text) for text in known):
        return texts, ordered(known)
    meaning = {text: _class_of_number(text, names) for text in known}
    classes = list(names) or ordered({name for name in meaning.values() if name is not None})
    return [None if text is None else meaning[text] for text in texts], classes


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):  # text of writers that do not mark it as such
        value = value.decode()
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        return None
    if not isinstance(value, str | bool | int | float | Decimal):
        raise ValueError(f"{str(value)[:80]} is no class")
    return str(value).strip() or None


def _class_of_number(text: str, names: Sequence[str]) -> str | None:
    """The class that a number stands for; None for a negative one."""
    match = _WHOLE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text} is no class: classes are whole numbers or names")
    number = int(match[1])
    if number < 0:
        return None
    if not names:
        return match[1]
    if number >= len(names):
        raise ValueError(f"{number} is none of its {len(names)} classes")
    return names[number]
