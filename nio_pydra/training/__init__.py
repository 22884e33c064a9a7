"""Training networks on images generated from label maps."""
