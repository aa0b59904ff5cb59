# Sourced by the other scripts: finds a Python, makes the virtual environment, installs opadapt into it.
# The environment is .venv in the checkout, or the folder that OPADAPT_VENV names.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${OPADAPT_VENV:-$ROOT/.venv}"
PYTHON="$VENV/bin/python"

_say() { printf '%s\n' "$*" >&2; }

# Prints the first Python of at least 3.11 that can make virtual environments; 3.11 is the one tested.
_find_python() {
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    fi
  done
  _say "opadapt needs Python 3.11 or newer with its venv module, and none is on the PATH."
  _say "  found: $(python3 --version 2>/dev/null || echo 'no python3')"
  _say "  do: install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv; or pyenv, conda), then repeat"
  return 1
}

# What the installation depends on: the declared dependencies, the pins, and where the checkout lies.
_fingerprint() {
  { cat "$ROOT/pyproject.toml" "$ROOT/scripts/constraints.txt"; printf '%s\n' "$ROOT"; } | cksum
}

# ensure_environment run|dev: installs what is missing; returns at once when nothing has changed since.
ensure_environment() {
  local wanted="$1" fingerprint stamp have
  fingerprint="$(_fingerprint)"
  for have in dev "$wanted"; do # an environment for development can run, too
    stamp="$VENV/.opadapt-$have"
    if [[ -x "$PYTHON" && -f "$stamp" && "$(<"$stamp")" == "$fingerprint" ]]; then
      return 0
    fi
  done
  if [[ ! -x "$PYTHON" ]]; then
    local base
    base="$(_find_python)" || return 1
    _say "making the environment $VENV with $base"
    "$base" -m venv "$VENV" || return 1
  fi
  _say "installing opadapt and its dependencies into $VENV (the first time takes some minutes)"
  "$PYTHON" -m pip install -qq --upgrade 'pip>=25.1' || return 1 # the first pip with --group
  local arguments=(--constraint "$ROOT/scripts/constraints.txt" --editable "$ROOT")
  if [[ "$wanted" == dev ]]; then
    arguments+=(--group "$ROOT/pyproject.toml:dev")
  fi
  "$PYTHON" -m pip install -qq "${arguments[@]}" || return 1
  printf '%s\n' "$fingerprint" >"$VENV/.opadapt-$wanted"
}
