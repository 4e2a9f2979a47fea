"""How long a test waits for what must come. It knows nothing of what that is.

Long, because nobody knows how busy the machine is, and a wait that is over ends at once. Where a bug is planted that keeps
it from coming, so long nobody waits: `tests.mutants` shortens it.
"""

import os
from typing import Final

VARIABLE: Final = "TESTS_PATIENCE_S"
PATIENCE_S: Final = float(os.environ.get(VARIABLE, "90"))
