"""The one place the version is written: packaging, the extension and receipts read it from here."""

__version__ = "0.1.0"
