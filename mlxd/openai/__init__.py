"""The routes of OpenAI's API: bodies in, answers and streams out, in its shapes."""
