"""The Unix control socket: who may speak on it, what is asked, what is answered. Does not know the HTTP routes."""
