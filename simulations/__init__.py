"""Virtual hospitals; never shipped to a hospital."""
