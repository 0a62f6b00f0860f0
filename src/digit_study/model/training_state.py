"""Where training stands between two epochs: all that decides how it goes on.

What comes of the seed alone (the order of the images, the augmentation) is not kept: it is gone
through up to the epoch, see :func:`digit_study.model.fit.make_batches`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Metrics of one epoch by name.
Epoch = dict[str, float]
#: Values of a variable.
Array = np.ndarray[Any, Any]
#: A model or an optimizer of Keras, which this module does not import.
HasVariables = Any


@dataclass(frozen=True)
class TrainingState:
    """The state of training after a number of epochs.

    Attributes:
        epochs: The record of every epoch so far.
        model: Variables of the model: weights, moving moments, states of random generators.
        optimizer: Variables of the optimizer: steps so far, moments, averaged weights.
        best_weights: Under early stopping the weights of the best epoch so far.
    """

    epochs: Sequence[Epoch]
    model: Sequence[Array]
    optimizer: Sequence[Array]
    best_weights: Sequence[Array] = field(default_factory=list)


def values_of(owner: HasVariables) -> list[Array]:
    """Return the values of all variables of a model or an optimizer, in its order."""
    return [np.array(variable) for variable in owner.variables]


def assign_values(owner: HasVariables, values: Sequence[Array]) -> None:
    """Set all variables of a model or an optimizer.

    Args:
        owner: The model or the optimizer.
        values: What :func:`values_of` returned.
    """
    for variable, value in zip(owner.variables, values, strict=True):
        variable.assign(value)
