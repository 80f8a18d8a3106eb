#!/usr/bin/env bash
# Runs every outside-client test against the relay binary in SKEP_BIN.
#
#   SKEP_BIN=target/debug/skep tests/clients/run.sh
#
# Packages are installed once for each lock file, in a cache folder outside the checkout.
set -euo pipefail
: "${SKEP_BIN:?set SKEP_BIN to the skep binary under test}"
SKEP_BIN=$(realpath "$SKEP_BIN")
[ -x "$SKEP_BIN" ] || { echo "not executable: $SKEP_BIN" >&2; exit 2; }
export SKEP_BIN PYTHONDONTWRITEBYTECODE=1
cd "$(dirname "$0")"
started=$SECONDS

cache=${XDG_CACHE_HOME:-$HOME/.cache}/skep-test
mkdir -p "$cache"
stamp() { cat "$@" | sha256sum | cut -c1-16; }

# Each install is made aside and moved into place, so that an interrupted one is never used.
node_home=$cache/node-$(stamp package.json package-lock.json)
if [ ! -d "$node_home" ]; then
  echo "installing the Node packages"
  aside=$(mktemp -d "$cache/node-XXXXXX.part")
  cp package.json package-lock.json .npmrc "$aside"
  (cd "$aside" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
  mv -T "$aside" "$node_home" 2>/dev/null || rm -rf "$aside" # another run was first
fi
if [ -e node_modules ] && [ ! -L node_modules ]; then
  echo "node_modules is a directory here; remove it, this script links it to $node_home" >&2
  exit 2
fi
ln -sfn "$node_home/node_modules" node_modules

# Python's programs know where they were installed: what is put in place is a link to it.
python_home=$cache/pythons-$(stamp requirements.txt)
if [ ! -e "$python_home" ]; then
  echo "installing the Python packages"
  aside=$(mktemp -d "$cache/python-XXXXXX.part")
  python3 -m venv "$aside"
  "$aside/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt
  ln -sT "$aside" "$python_home" 2>/dev/null || rm -rf "$aside" # another run was first
fi

failed=()
# NDK keeps timers that nothing clears: without the forced exit its file would never end.
node --test --test-force-exit --test-reporter=spec --test-concurrency=4 ./*.test.mjs || failed+=(node)
"$python_home/bin/python" -m unittest test_nostr_sdk test_mcp || failed+=(python)

seconds=$((SECONDS - started))
if [ ${#failed[@]} -gt 0 ]; then
  echo "outside clients: FAILED in ${failed[*]} after $seconds s"
  exit 1
fi
echo "outside clients: all passed in $seconds s"
