"""The doctor: facts about the running whole, one module a source, and rules over them that name what is wrong.

A rule is a function from :class:`~policyd.doctor.facts.Facts` to findings. It opens no file and asks nobody, so each is
tested with facts that a test makes up. Rules stand in modules by what they look at; :mod:`policyd.doctor.judge` has all
of them. What could not be looked at is a finding of its own, of the level ``unknown``.
"""
