#!/usr/bin/env bash
# Runs the backends of skep-agent against real ACP programs and a mock model server.
#
#   tests/agents/run.sh            installs what is missing, then runs the tests
#   tests/agents/run.sh install    installs only; fails when the registry cannot be reached
#
# The programs are installed once for each lock file, in a cache folder outside the checkout. No key and no network is
# needed after that: each test gives its program a home of its own and a model on loopback.
set -euo pipefail
cd "$(dirname "$0")"
cargo=${CARGO:-cargo}

cache=${XDG_CACHE_HOME:-$HOME/.cache}/skep-test
home=$cache/agents-$(cat package.json package-lock.json | sha256sum | cut -c1-16)

# Made aside and moved into place, so that an interrupted install is never used.
if [ ! -d "$home" ]; then
  echo "installing the agents, about 500 MB"
  mkdir -p "$cache"
  aside=$(mktemp -d "$cache/agents-XXXXXX.part")
  trap 'rm -rf "$aside"' EXIT
  cp package.json package-lock.json .npmrc "$aside"
  # Not `npm ci`: it wants each platform's package in the lock file, and a mirror may have this platform's only.
  # `npm install` takes versions and checksums from the lock file all the same.
  (cd "$aside" && npm install --no-save --ignore-scripts --loglevel=error) ||
    { echo "the agents could not be installed: is the package registry in reach?" >&2; exit 1; }
  mv -T "$aside" "$home" 2>/dev/null || rm -rf "$aside" # another run was first
fi
[ "${1:-}" != install ] || exit 0

cd ../..
export SKEP_REAL_AGENTS=$home/node_modules
exec "$cargo" nextest run --locked --package skep-agent --features real-agents --test real_agents
