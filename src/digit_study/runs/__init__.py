"""Runs as a person types them: one, or Hydra's -m beneath a parent run, checked before anything starts.

Imports engine, tracking, config, training, evaluation, data, terminal.
"""
