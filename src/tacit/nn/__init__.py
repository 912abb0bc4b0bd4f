"""Layers that have a name in the literature and serve several models."""
