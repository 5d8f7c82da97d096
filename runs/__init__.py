"""One run: its command line, config, execution, directory and result."""

import dassl  # noqa: F401 -- before torch
