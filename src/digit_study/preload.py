"""Everything slow that a trial needs, imported once by the server that trials are forked from. Runs no operation."""

from digit_study.quiet import native_stderr

with native_stderr():
    import mlflow.keras
    import seaborn
    import sklearn.metrics
    import sklearn.model_selection
    import statsmodels.stats.proportion

    import digit_study.pipeline

__all__ = ["digit_study", "mlflow", "seaborn", "sklearn", "statsmodels"]
