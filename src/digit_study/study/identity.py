"""Which study a name means on this machine: several clones of the project may use the same name."""

from optuna import get_all_study_summaries
from optuna.storages import JournalStorage

from digit_study.study._optuna import JournalFile
from digit_study.support.workspace import Workspace

#: Attribute of a study: it tells studies of the same name apart.
UID = "uid"


def local_uid(study: str, workspace: Workspace) -> str | None:
    """Return the uid of a study that is kept on this machine.

    Args:
        study: Its name.
        workspace: Where studies are kept.

    Returns:
        None where there is no such study here.
    """
    path = workspace.studies / f"{study}.journal"
    if not path.is_file():
        return None
    storage = JournalStorage(JournalFile(path))
    for summary in get_all_study_summaries(storage, include_best_trial=False):
        if summary.study_name == study:
            return summary.user_attrs.get(UID)
    return None
