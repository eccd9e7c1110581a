"""The method as the paper writes it: slow, readable, one formula a file."""
