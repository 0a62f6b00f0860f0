"""The names of MLflow that are used and not documented. A test fails should they move."""

from mlflow.utils import requirements_utils

#: Where MLflow is told that artifacts lie while it makes its experiment Default.
NOWHERE = "mlflow-artifacts:/nowhere"


def skip_module_map() -> None:
    """Keep MLflow from mapping every installed module to its package.

    MLflow makes that map once in every process that saves a model. It reads the metadata of all
    packages for it, which takes most of a second. The map serves requirements that are named after
    a module instead of a package, and this project has none.
    """
    requirements_utils._MODULES_TO_PACKAGES = {}  # type: ignore[assignment] # noqa: SLF001


def create_tables(uri: str, default_artifacts: str) -> None:
    """Create MLflow's tables and its experiment Default, where they are missing.

    MLflow writes the folder of Default into SQL as it is. The name of a folder may have quotes and
    colons, which end the statement or name a parameter of it. So Default is made without a folder
    and given one afterwards. No connection stays open.

    Args:
        uri: URI of a database.
        default_artifacts: URI of the folder of Default.
    """
    # here, because a worker imports this module and needs none of them
    from mlflow.store.tracking.dbmodels.models import SqlExperiment
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import update

    store = SqlAlchemyStore(uri, NOWHERE)  # type: ignore[no-untyped-call]
    made = f"{NOWHERE}/{store.DEFAULT_EXPERIMENT_ID}"
    with store.engine.begin() as connection:
        connection.execute(
            update(SqlExperiment)
            .where(SqlExperiment.artifact_location == made)
            .values(artifact_location=default_artifacts)
        )
    store.engine.dispose()
