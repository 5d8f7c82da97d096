"""Programs that measure time and memory, each a table."""

import dassl  # noqa: F401 -- before torch
