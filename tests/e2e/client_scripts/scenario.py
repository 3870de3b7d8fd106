"""What the scripts share: they run in a client's environment and print one JSON document."""

import json
import sys


def main(scenarios):
    """Run the scenario that the command line names and print what it returns."""
    name, *args = sys.argv[1:]
    print(json.dumps(scenarios[name](*args)))


def problem(error):
    """Give an API error of any client as one object."""
    return {"status": error.status, **error.data}
