"""Where a run's rows go: part files, manifest, snapshot, whole or not at all."""
