"""Files: artifacts, records, storage, and how they are written."""
