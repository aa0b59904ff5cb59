# Sourced by .ci/run: a real SSH server and emulated ARM boards for the tests. Where a machine cannot have them (no
# root, no namespaces, no binfmt_misc), this says so, and the tests that need them are skipped and say so, too. Anything
# else that goes wrong with them is a failure.

FULL_BOARDS=3                 # two test processes, one of which may want two boards
BOARDS=$((FULL_BOARDS + 1))   # and one without onnxruntime, to install it on
FIRST_PORT=20000 SLOTS=1000   # each run on a machine has a slot, which is as many ports as boards
APT_PAUSES_S=(10 30 60 0)     # after each attempt

boards_process="" # makes the boards, while it does
board_ports=()    # ours

begin_boards() {
  boards_log="$(mktemp)"
  trap _end_boards EXIT
  _make_boards >"$boards_log" 2>&1 &
  boards_process=$!
}

# Waits until the boards are made; starts them, and has them stopped at the end.
start_boards() {
  local code=0 port
  wait "$boards_process" || code=$?
  boards_process=""
  cat "$boards_log"
  if ((code == 3)); then
    printf 'CI: no emulated board on this machine, for the reason above: its tests are skipped\n'
    return 0
  fi
  ((code == 0)) || return "$code"
  _claim_ports
  for port in "${board_ports[@]::FULL_BOARDS}"; do bash scripts/emulated_board start "$port" 8>&-; done
  bash scripts/emulated_board start "${board_ports[FULL_BOARDS]}" bare 8>&-
  OPADAPT_TEST_BOARD="$(bash scripts/emulated_board home)"
  OPADAPT_TEST_PORTS="${board_ports[*]}"
  export OPADAPT_TEST_BOARD OPADAPT_TEST_PORTS
}

_end_boards() {
  if [[ -n "$boards_process" ]]; then
    kill "$boards_process" 2>/dev/null || true # an apt-get under way goes on: half an installation would be worse
    wait "$boards_process" || true
  fi
  rm -f "$boards_log"
  _stop_boards
}

_stop_boards() {
  local port
  for port in "${board_ports[@]}"; do bash scripts/emulated_board stop "$port" 8>&-; done
}

# The slot that the checkout's path gives, or the first after it that is free. Its lock is held until this run ends; so
# boards that are in it nevertheless are what a killed run has left.
_claim_ports() {
  local folder slot tried
  folder="$(bash scripts/emulated_board home)"
  mkdir -p -m 700 "$folder"
  slot=$(($(cksum <<<"$PWD" | cut -d ' ' -f 1) % SLOTS))
  for ((tried = 0; tried < SLOTS; tried++, slot = (slot + 1) % SLOTS)); do
    exec 8>"$folder/ci-slot-$slot.lock"
    if flock --nonblock 8; then
      mapfile -t board_ports < <(seq $((FIRST_PORT + slot * BOARDS)) $((FIRST_PORT + slot * BOARDS + BOARDS - 1)))
      _stop_boards
      if _nobody_listens "${board_ports[@]}"; then return 0; fi
      board_ports=()
    fi
  done
  printf 'CI: no %d free ports for the boards\n' "$BOARDS"
  return 1
}

_nobody_listens() { # PORT...
  local port
  for port; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then return 1; fi
  done
}

_make_boards() {
  local wanted
  read -ra wanted <<<"openssh-server $(bash scripts/emulated_board packages)"
  if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null && ! _install "${wanted[@]}"; then
    printf 'CI: apt-get does not install what the boards need: %s\n' "${wanted[*]}"
    # where there can be boards, it is not to go unnoticed that there are none
    if unshare --mount --pid --fork true 2>/dev/null; then exit 1; fi
  fi
  exec bash scripts/emulated_board build
}

_install() { # PACKAGE...
  local pause_s
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # no question, and no SSH server on the machine's own port
  for pause_s in "${APT_PAUSES_S[@]}"; do
    if _installed "$@"; then return 0; fi
    apt-get update -qq || true # some other source may be out of reach
    apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" || sleep "$pause_s"
  done
  _installed "$@"
}

_installed() { # PACKAGE...
  local states
  states="$(dpkg-query --show --showformat '${db:Status-Status}\n' "$@" 2>/dev/null)" || return 1
  [[ "$(sort -u <<<"$states")" == installed ]]
}
