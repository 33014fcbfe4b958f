"""Tiny models, served."""

from tests.support.served_models import models_root, serve_models

__all__ = ["models_root", "serve_models"]
