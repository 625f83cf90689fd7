"""From parallel text to batches of one shape."""
