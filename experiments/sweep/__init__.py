"""Sweeps: what is planned (``plan``), what it will take (``times``), who runs it (``local``, ``ray_engine``)."""
