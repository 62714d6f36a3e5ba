"""Folders of files under one URI, written once, checked by SHA-256, signed where that is set."""
