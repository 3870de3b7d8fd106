"""The Python client: everything a program needs to have code built and run by a server."""
