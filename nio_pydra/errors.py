"""Errors that are shown to the user without a traceback."""

__all__ = ["ComputationError", "FullDiskError", "InputError", "ProgramError"]


class InputError(ValueError):
    """A user's input cannot be used.

    The message names the file, what was found, what was expected and what to do. Command lines print it without a
    traceback and exit with status 1.
    """


class FullDiskError(InputError):
    """A disk is full. The input is not at fault, and the next one would fail as well."""


class ProgramError(RuntimeError):
    """A program that this package runs has failed; the message ends with its last output."""


class ComputationError(RuntimeError):
    """A computation of this package gave an unusable result; the message is for the user."""
