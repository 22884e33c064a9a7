"""Atlas registration of brain scans by Neural Instance Optimization."""

from nio_pydra.system import forks as _forks  # noqa: F401  notices forks from now on


def __getattr__(name: str) -> str:
    """Find `__version__` when it is asked for: that takes a look at the repository."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nio_pydra.version import version

    return version()
