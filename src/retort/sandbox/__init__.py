"""The kernel's side of a session: bubblewrap, retort-init and what this host can do."""
