"""Key pairs and sessions in SQL."""
