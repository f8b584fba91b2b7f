"""Errors that a user can mend, and interruptions that say how to go on."""


class UserError(Exception):
    """What the user can mend, in one line: what is wrong, which file, how to mend it (exit code 2)."""


class Finished(Exception):  # noqa: N818 (nothing went wrong)
    """This process has done its part; the message says how to go on (exit code 0)."""


class Interrupted(KeyboardInterrupt):
    """Stopped on request; the message says what was saved and how to resume (exit code 130)."""
