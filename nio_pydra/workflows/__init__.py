"""Pydra workflows: one scan, and all scans of a dataset."""
