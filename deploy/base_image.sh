#!/usr/bin/env bash
# Build a Debian base with Python for machines that cannot pull images. debootstrap runs once; the result is cached.
# Print the path of the archive. Needs root and Debian's debootstrap. Usage: deploy/base_image.sh [SUITE]
set -euo pipefail

suite=${1:-bookworm}
cache=${SPLOOT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sploot-cluster}
archive=$cache/base-$suite-2.tar  # increase the number when the commands below change
if [ -f "$archive" ]; then
    echo "$archive"
    exit 0
fi

mkdir -p "$cache"
root=$(mktemp -d "$cache/base.XXXXXX")
trap 'rm -rf "$root"' EXIT
# use the mirror of this machine's apt, or debootstrap's default if none is found
# shellcheck disable=SC2016  # apt expands these
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v suite="$suite" '$2 == suite && $3 == "main" { print $1; exit }')
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$root" ${mirror:+"$mirror"} >"$cache/debootstrap.log" 2>&1 ||
    { tail -n 20 "$cache/debootstrap.log" >&2; exit 1; }
# remove what python:slim does not have either: package lists, caches, documentation
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/usr/share/{doc,man,info,locale,lintian}
find "$root/usr" "$root/var" -name __pycache__ -prune -exec rm -rf {} +
tar -C "$root" -cf "$archive.part" .
mv "$archive.part" "$archive"
echo "$archive"
