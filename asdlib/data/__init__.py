"""Recordings: index, decoding, store, conditions, import, download, synthetic machines."""
