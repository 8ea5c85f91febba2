"""Decode perceived speech from M/EEG."""

__version__ = "0.1.0"
