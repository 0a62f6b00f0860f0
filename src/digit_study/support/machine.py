"""Old address of :mod:`hardware` and :mod:`processes`, until all callers use the new ones."""

from digit_study.support.hardware import cores as cores
from digit_study.support.hardware import gpus as gpus
from digit_study.support.hardware import processor as processor
from digit_study.support.hardware import resolve_precision as resolve_precision
from digit_study.support.processes import end_process as end_process
from digit_study.support.processes import find_process as find_process
from digit_study.support.processes import is_alive as is_alive
from digit_study.support.processes import process_name as process_name
from digit_study.support.processes import user_name as user_name
