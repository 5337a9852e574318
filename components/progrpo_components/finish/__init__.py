"""The ``finish`` component."""
