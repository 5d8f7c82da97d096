"""Sweeps: what is planned (``plan``), what it will take (``times``), who runs it (``local``, ``ray_engine``).

A run (``task``) and its line (``progress``) are those of the scripts too.
"""
