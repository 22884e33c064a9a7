"""Optimisation of a network (NIO, NIO_m) or of a field (IO) on one pair."""
