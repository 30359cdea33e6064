"""What travels between server and devices, by the names of records."""

SETTINGS = (
    "settings"  # the record of a message with the run's keys, where a run has none of its own
)
