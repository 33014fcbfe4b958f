"""What both programs agree on; a leaf that imports the standard library and msgpack only."""
