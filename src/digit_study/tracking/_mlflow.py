"""The private name of MLflow that is used; 3.17 has no public name. A test fails should it move."""

from mlflow.store.db.utils import _initialize_tables
from sqlalchemy import create_engine


def create_tables(uri: str) -> None:
    """Create MLflow's tables in a database and leave no connection open, as MLflow itself does."""
    engine = create_engine(uri)
    _initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()
