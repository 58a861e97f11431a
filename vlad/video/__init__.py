"""Pictures with time: clips, picture sequences and cameras as sources, smoothed scores, events, alarms."""
