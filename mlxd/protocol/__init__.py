"""What both programs agree on; a leaf that imports the standard library, msgpack and msgspec only."""
