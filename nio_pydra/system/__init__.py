"""The machine underneath: files, temporary folders and other programs."""
