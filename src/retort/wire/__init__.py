"""The wire: compatible JSON, headers and names, pure (the spec's words live here)."""
