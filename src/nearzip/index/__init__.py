"""The index of an archive: everything about it but the blocks, and the forms that it has in files."""
