"""The programs that make an environment on a board. They run on the board's Python, 3.9 or newer, with its standard
library alone, ``python -I - CACHE LOCK WHO HASH...``, and say ``key<TAB>value``.

``LOCKED`` comes first: it takes the board's lock as the agent does, by the agent's own code, and the lock goes with
the process. ``LOOK`` says which wheels have arrived whole. ``MAKE`` unpacks the wheels of the hashes beside the old
environment, tries the new one and puts it in the old one's place, or says ``failed`` with the exit code of the
trial; in any case nothing else is left then.
"""

from __future__ import annotations

import inspect

from opadapt.measure.agent import BoardLock, lock_place

LOCKED = rf"""
from __future__ import annotations
import contextlib, errno, fcntl, hashlib, json, os, shutil, stat, subprocess, sys, time, venv, zipfile
from pathlib import Path
cache, hashes = sys.argv[1], sys.argv[4:]
os.makedirs(cache, exist_ok=True)
HERE, BOARD_LOCK = Path(cache, "agent.py"), Path(sys.argv[2])

{inspect.getsource(lock_place)}

{inspect.getsource(BoardLock)}

lock = BoardLock(lock_place(), sys.argv[3])
holder = lock.take()
if holder:
    print("locked", holder, sep="\t")
    sys.exit(1)
wheels = os.path.join(cache, "wheels")
os.makedirs(wheels, exist_ok=True)

def whole(sha256):
    with contextlib.suppress(FileNotFoundError), open(os.path.join(wheels, sha256), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest() == sha256
    return False
"""

LOOK = r"""
for name in os.listdir(wheels):
    if whole(name):
        print(name, "there", sep="\t")
lock.release()
"""

# A wheel is a zip file: what lies at its top belongs into site-packages, and so does *.data/purelib and platlib
# (PyPA, binary distribution format). Scripts, headers and other data are not needed to import.
MAKE = r"""
now, new, old = (os.path.join(cache, name) for name in ("venv", "venv.new", "venv.old"))

def unpack(sha256, root):
    with zipfile.ZipFile(os.path.join(wheels, sha256)) as wheel:
        for entry in wheel.infolist():
            parts = entry.filename.split("/")
            if parts[0].endswith(".data"):
                if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
                    continue
                parts = parts[2:]
            target = os.path.realpath(os.path.join(root, *parts))
            if entry.is_dir() or not parts[-1]:
                continue
            if os.path.isabs(entry.filename) or not target.startswith(root + os.sep):
                raise SystemExit("a wheel wants to write outside of its folder: " + entry.filename)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with wheel.open(entry) as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy)

TRY = '''
import os
from importlib import metadata
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
print("trying", metadata.version("onnxruntime"), sep="\t", flush=True)
import numpy, onnxruntime
print("numpy", numpy.__version__, sep="\t")
print("onnxruntime", onnxruntime.__version__, sep="\t", flush=True)
'''

try:
    venv.create(new, clear=True, symlinks=True, with_pip=False)
    site = os.path.join(new, "lib", "python%d.%d" % sys.version_info[:2], "site-packages")
    for sha256 in hashes:
        if not whole(sha256):
            raise SystemExit("a wheel arrived damaged, or another installation took it away: install again")
        unpack(sha256, os.path.realpath(site))
    python = os.path.join(new, "bin", "python")
    code = subprocess.run([python, "-I", "-c", TRY], stdin=subprocess.DEVNULL).returncode
    if code:
        print("failed", code, sep="\t", flush=True)
        sys.exit(1)
    shutil.rmtree(old, ignore_errors=True)
    if os.path.lexists(now):
        os.rename(now, old)
    os.rename(new, now)
    shutil.rmtree(old, ignore_errors=True)
finally:
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(wheels, ignore_errors=True)
    lock.release()
"""
