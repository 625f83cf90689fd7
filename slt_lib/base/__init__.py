"""What every part stands on: files, the store, settings, seeds, devices."""
