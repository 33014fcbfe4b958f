"""A chat of OpenAI's as the body of Anthropic's messages."""
