import os
import sys
from pathlib import Path

# The package ssl_tiny beside this file, for the tests and for the processes that they start.
HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)
os.environ["PYTHONPATH"] = os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
