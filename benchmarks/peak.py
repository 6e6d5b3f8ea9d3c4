"""Run a command and print, as the last line, the peak memory of its largest process in KiB.

    python benchmarks/peak.py COMMAND ...

The peak that the system keeps of a process begins with that of the one that started it, so a small one has to.
"""

import resource
import subprocess
import sys

done = subprocess.run(sys.argv[1:], check=False)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
