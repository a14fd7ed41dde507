"""One file for each format of data sets that can be read."""
