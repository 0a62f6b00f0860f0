"""Decides once what ``auto`` and null leave open: data, precision, threads. Needs no TensorFlow."""

from __future__ import annotations

from dataclasses import replace

from digit_study.config import machine as hardware
from digit_study.config.run import Config
from digit_study.data import digits as data
from digit_study.data import sources
from digit_study.terminal.errors import StudyError


def resolve_config(config: Config, parallel: int = 1) -> tuple[Config, sources.Source]:
    """Settle what a validated config leaves open; settling twice changes nothing.

    Args:
        config: validated.
        parallel: runs that share this machine's cores.

    Raises:
        StudyError: the data are not there or not what they should be, or one batch is more than all of them.
    """
    source = sources.resolve(config.data)
    train, _ = data.split_sizes(source.images, source.config)
    if config.training.batch_size > train:
        raise StudyError(
            f"`training.batch_size` is at most the {train} digits there are to train on, "
            f"got {config.training.batch_size}: lower it, or raise data.limit"
        )
    recipe = replace(
        config.training,
        precision=hardware.resolve_precision(config.training.precision),
        threads=config.training.threads or max(1, hardware.cores() // parallel),
    )
    return replace(config, data=source.config, training=recipe), source
