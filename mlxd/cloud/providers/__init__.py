"""One module per wire protocol that an upstream may speak."""
