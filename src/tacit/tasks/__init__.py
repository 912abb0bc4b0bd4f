"""The verbs: one file each, of which the command line and the Python API are derived."""
