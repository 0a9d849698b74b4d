"""The reports on a run that people read: its plan, start, report page and summary."""
