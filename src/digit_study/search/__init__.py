"""A study: what is searched, the Optuna study and its storage, the sweep, how trials end, the report.

Imports runs, engine, tracking, config, training, evaluation, data, terminal.
"""
