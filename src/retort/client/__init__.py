"""The Python client of Retort, also of the command line and of tests."""
