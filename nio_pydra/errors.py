"""What goes wrong in ways that are told without a traceback."""

__all__ = ["ComputationError", "FullDiskError", "InputError", "ProgramError"]


class InputError(ValueError):
    """A user's input cannot be used.

    The message is one sentence for that user: it names the file, what was found, what was expected and what to
    do. Command lines print it without a traceback and exit with status 1.
    """


class FullDiskError(InputError):
    """A disk is full: nothing is wrong with the input at hand, and the next one will fare no better."""


class ProgramError(RuntimeError):
    """Another program that this package runs has failed; the message ends with what it printed last."""


class ComputationError(RuntimeError):
    """A computation of this package gave nothing that can be used; the message is one sentence for the user."""
