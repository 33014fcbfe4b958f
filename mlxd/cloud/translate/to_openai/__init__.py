"""Anthropic's messages as the body of a chat of OpenAI's."""
