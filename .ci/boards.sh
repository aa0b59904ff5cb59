# Sourced by .ci/run: a real SSH server and emulated ARM boards for the tests. Where a machine cannot have them (no
# root, no binfmt_misc), this says so, and the tests that need them are skipped and say so, too. Anything else that
# goes wrong with them is a failure.

BOARD_PORTS=(2322 2323 2324) # two test processes, one of which may want two boards
BARE_PORT=2325               # a board without onnxruntime, to install it on

begin_boards() {
  boards_log="$(mktemp)"
  _make_boards >"$boards_log" 2>&1 &
  boards_process=$!
}

# Waits until the boards are made; starts them, and has them stopped at the end.
start_boards() {
  local code=0 port
  wait "$boards_process" || code=$?
  cat "$boards_log"
  rm -f "$boards_log"
  if ((code == 3)); then
    printf 'CI: no emulated board on this machine, for the reason above: its tests are skipped\n'
    return 0
  fi
  ((code == 0)) || return "$code"
  trap _stop_boards EXIT
  _stop_boards # what an interrupted run has left
  for port in "${BOARD_PORTS[@]}"; do bash scripts/emulated_board start "$port"; done
  bash scripts/emulated_board start "$BARE_PORT" bare
  OPADAPT_TEST_BOARD="$(bash scripts/emulated_board home)"
  export OPADAPT_TEST_BOARD
}

_stop_boards() {
  local port
  for port in "${BOARD_PORTS[@]}" "$BARE_PORT"; do bash scripts/emulated_board stop "$port"; done
}

_make_boards() {
  local wanted
  read -ra wanted <<<"openssh-server $(bash scripts/emulated_board packages)"
  if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null && ! dpkg -s "${wanted[@]}" >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # no question, and no SSH server on the machine's own port
    apt-get update -qq || true                       # some other source may be out of reach
    apt-get install -qq -y --no-install-recommends "${wanted[@]}" || true # emulated_board says what is missing
  fi
  bash scripts/emulated_board build
}
