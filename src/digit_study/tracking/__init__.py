"""Record runs in MLflow. Imports report, config, model, stats, data, support.

Its modules, each importing only those before it: location, database, spool, store, pages, upload,
runs, writer, uploader, models, queries, session. Other packages use `session.Tracker`.
"""
