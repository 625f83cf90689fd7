"""The one error that the user can fix."""


class InputError(Exception):
    """What the user can fix: one line that names the file, the key and the remedy.

    The command line prints it and exits with status 2.
    """
