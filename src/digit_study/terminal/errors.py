"""The one exception a person is meant to read."""


class StudyError(Exception):
    """A mistake or a fault that a person can mend.

    The message states the rule, the value that broke it and the remedy, in that order. Entry points
    print it alone, without a traceback, and exit with status 1.
    """
