"""Atlas registration of brain scans by Neural Instance Optimization."""

__version__ = "0.2.0"
