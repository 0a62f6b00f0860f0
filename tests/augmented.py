"""Batches that an augmentation changes, without a training."""

from __future__ import annotations

from typing import Any

from digit_study.model.augmentation import Change, batch_numbers


def changed_batches(batches: Any, seed: int, change: Change) -> Any:
    """Change the images of a dataset of batches, at random by a seed."""
    import tensorflow as tf

    def change_batch(number: Any, batch: Any) -> Any:
        return change(number, *batch)

    numbered = tf.data.Dataset.zip(batch_numbers(seed), batches)
    return numbered.map(tf.autograph.experimental.do_not_convert(change_batch))
