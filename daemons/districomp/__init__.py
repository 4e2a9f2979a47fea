"""Shared by the coordinator, the worker and the command line; imports nothing of theirs."""

__version__ = "0.1.0"
