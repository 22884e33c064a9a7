"""Geometry of images and fields: the only room that knows about unit grids, axis order and RAS or LPS."""
