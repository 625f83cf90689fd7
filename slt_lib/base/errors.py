"""The one error that a person can mend."""


class InputError(Exception):
    """What a person can mend: one line that names the file, the key and the remedy.

    The command line prints it and exits with status 2.
    """
