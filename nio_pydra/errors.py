"""The one exception that means: the user can put this right."""

__all__ = ["InputError"]


class InputError(ValueError):
    """A user's input cannot be used.

    The message is one sentence for that user: it names the file, what was found, what was expected and what to
    do. Command lines print it without a traceback and exit with status 1.
    """
