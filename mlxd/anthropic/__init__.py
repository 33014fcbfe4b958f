"""The routes of Anthropic's API: bodies in, answers and streams out, in its shapes."""
