"""Postfix's side: what its configuration says, what must change in it for policyd to be asked, and how that is done."""
