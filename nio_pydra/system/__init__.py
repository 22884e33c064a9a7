"""Services of the machine: files, temporary folders, other programs."""
