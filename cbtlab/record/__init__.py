"""Live recorders, snapshot providers and the freeze between them.

Everything here imports the standard library only, so that it also runs in a
guest with a bare Python.
"""
