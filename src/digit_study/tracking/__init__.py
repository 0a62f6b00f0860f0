"""The one room that speaks to MLflow about runs. Imports config, training, evaluation, data, terminal."""
