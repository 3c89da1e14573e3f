"""The version of the package, on the ground floor so that any file may read it."""

__version__ = "0.1.0"
