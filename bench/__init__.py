"""Measures policyd beside a server that does nothing and beside its peers, in one run; see README.md."""
