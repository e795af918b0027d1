#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'TEXT'
Write Alertmanager's two secrets to files, because Alertmanager cannot read environment variables.

  SLACK_WEBHOOK_URL=… PAGERDUTY_ROUTING_KEY=… render-secrets.sh DIRECTORY

Each file has the name of its variable and is readable by its owner only. The secrets are not printed.

Exit codes: 0 done, 64 usage, 78 a variable is missing or invalid.
TEXT
}

refuse() {
    printf 'render-secrets.sh: %s\n' "$1" >&2
    exit 78
}

case ${1:-} in
    --help | -h) usage && exit ;;
    '' | -*) usage >&2 && exit 64 ;;
esac
[[ $# -eq 1 ]] || { usage >&2 && exit 64; }
[[ "${SLACK_WEBHOOK_URL:-}" =~ ^https?://[^[:space:]]+$ ]] || refuse "SLACK_WEBHOOK_URL is missing or not a URL: expected the address of the incoming webhook of #sploot-media-alerts"
[[ "${PAGERDUTY_ROUTING_KEY:-}" =~ ^[A-Za-z0-9]{32}$ ]] || refuse "PAGERDUTY_ROUTING_KEY is missing or not a key: expected the 32 characters of an Events API v2 integration of Media Clustering"

umask 077
mkdir -p "$1"
for name in SLACK_WEBHOOK_URL PAGERDUTY_ROUTING_KEY; do
    # replace the file atomically: Alertmanager may read it at any time
    printf '%s' "${!name}" >"$1/.$name.new"
    mv "$1/.$name.new" "$1/$name"
    echo "written: $1/$name"
done
