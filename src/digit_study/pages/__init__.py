"""A study in one HTML page: collected from Optuna, MLflow and the ledger, rendered, and watched while it grows.

Imports champion, verify, search, tracking, config, evaluation, data, terminal.
"""
