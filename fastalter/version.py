"""The one place that states the version; the build and the artifacts read it here."""

__version__ = "0.1.0"
