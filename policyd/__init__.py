"""A policy server for Postfix: it answers from rules the admin wrote down, and remembers what it saw."""

__version__ = "0.1.0"
