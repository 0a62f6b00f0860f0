"""Record runs in MLflow. Imports report, config, model, stats, data, support.

Its modules, each importing only those before it: location, spool, provenance, system_metrics,
_mlflow, relocation, ui, database, store, pages, upload, runs, writer, uploader, models, queries,
session. Other packages use `session.Tracker`. MLflow itself loads `digit_model`.
"""
