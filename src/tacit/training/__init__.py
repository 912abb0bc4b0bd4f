"""The only loop, and the folder it keeps."""
