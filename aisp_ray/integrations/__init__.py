"""Our methods inside other libraries' loops."""
