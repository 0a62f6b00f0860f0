"""Promote a network to champion, take that back, or print the ledger. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config.promote_config import PromoteConfig
from digit_study.study.begun_study import UID
from digit_study.study.journal import journal_path, stored_attributes
from digit_study.study.run_plan import plan_task
from digit_study.support.signals import readable_errors
from digit_study.support.workspace import Workspace

#: Options a person may type, and the keys they stand for.
OPTIONS = {
    "--dry-run": "promote.dry_run=true",
    "--rollback": "rollback=true",
    "--history": "history=true",
}


if __name__ == "__main__":
    with readable_errors():
        sys.argv[1:] = [OPTIONS.get(word, word) for word in sys.argv[1:]]
        workspace = Workspace.of_project()
        config = plan_task(sys.argv[1:], "promote", PromoteConfig, workspace)
        from digit_study.registry import promotion

        study_uid = None
        if not (config.history or config.rollback or config.run_id):
            study_uid = stored_attributes(journal_path(workspace, config.study)).get(UID)
        promotion.run(config, workspace, study_uid=study_uid)
