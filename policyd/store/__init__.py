"""The store: where counts, steering data and decisions are kept. SQLite in WAL mode, one writer thread."""
