"""The one error a person can mend.

`InputError` says what was wrong, where, and what to do; the command line prints it as one line and
exits 2. Everything else that is raised is a defect of ours (exit 1, with a traceback).
"""


class InputError(ValueError):
    """The user's input is wrong: a missing path, a bad key, a damaged file."""
