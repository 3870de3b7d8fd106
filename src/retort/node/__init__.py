"""One machine: sessions as sandboxes, runs as steps."""
