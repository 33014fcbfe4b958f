"""The contract of both programs; a leaf that imports the standard library, msgpack and msgspec only."""
