"""Use cases: who may do what, in which order."""
