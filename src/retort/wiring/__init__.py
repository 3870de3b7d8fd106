"""The one place that builds everything from a Config."""
