"""Atlas registration of brain scans by Neural Instance Optimization."""


def __getattr__(name: str) -> str:
    """Find `__version__` when it is asked for: that takes a look at the repository."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nio_pydra.version import version

    return version()
