"""Tests that start real programs: Postfix, Dovecot, policyd itself. Each test has the marker ``system``."""
