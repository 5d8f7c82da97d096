"""``python -m dassl.features`` shows or removes the image features that are kept on disk."""

import sys

from dassl.extras.features.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
