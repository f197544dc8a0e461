"`python -m cjm_worker_protocols` is the command `cjm-workers`."

import sys

from .cli import main

if __name__ == "__main__": sys.exit(main())
