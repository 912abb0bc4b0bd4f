"""Environments seen as pixels, dreams of them, and controllers evolved in either (needs the extra `world`)."""
