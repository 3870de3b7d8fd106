"""Retort: a server that builds and runs other people's code (docs/ARCHITECTURE.md)."""

__version__ = "0.1.0"
