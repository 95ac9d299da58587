"""Retention: which runs are needed and by whom, removing the others, and how long a disk lasts."""
