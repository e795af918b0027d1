#!/bin/sh
set -eu

usage() {
    cat <<'TEXT'
Write Alertmanager's two secrets to files, because Alertmanager cannot read environment variables.

  SLACK_WEBHOOK_URL=… PAGERDUTY_ROUTING_KEY=… render-secrets.sh [--owner USER[:GROUP]] DIRECTORY

Each file has the name of its variable and is readable by its owner only: you, or with --owner the user that Alertmanager
runs as, such as prometheus. Only root may give files away. The Alertmanager of the compose file and of make up-local read
your files. The secrets are not printed.

Exit codes: 0 done, 64 usage, 77 you may not give the files to that owner, 78 a variable is missing or invalid.
TEXT
}

refuse() {
    printf 'render-secrets.sh: %s\n' "$2" >&2
    exit "$1"
}

owner='' directory='' value=''
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage && exit ;;
        --owner)
            [ -n "${2:-}" ] || { usage >&2 && exit 64; }
            owner=$2
            shift
            ;;
        -*) usage >&2 && exit 64 ;;
        *)
            [ -z "$directory" ] || { usage >&2 && exit 64; }
            directory=$1
            ;;
    esac
    shift
done
[ -n "$directory" ] || { usage >&2 && exit 64; }

# valid NAME PATTERN: whether the variable is one line that matches
valid() {
    eval "value=\${$1:-}"
    [ "$(printf '%s' "$value" | grep -Ecx "$2")" = 1 ] && [ "$(printf '%s\n' "$value" | wc -l)" -eq 1 ]
}
valid SLACK_WEBHOOK_URL 'https?://[^[:space:]]+' ||
    refuse 78 "SLACK_WEBHOOK_URL is missing or not a URL: expected the URL of the incoming webhook of #sploot-media-alerts"
valid PAGERDUTY_ROUTING_KEY '[A-Za-z0-9]{32}' ||
    refuse 78 "PAGERDUTY_ROUTING_KEY is missing or not a key: expected the 32 characters of an Events API v2 integration of Media Clustering"

umask 077
mkdir -p "$directory"
for name in SLACK_WEBHOOK_URL PAGERDUTY_ROUTING_KEY; do
    eval "value=\$$name"
    # replace the file atomically: Alertmanager may read it at any time
    new=$directory/.$name.new
    printf '%s' "$value" >"$new"
    [ -z "$owner" ] || chown "$owner" "$new" || { rm "$new" && refuse 77 "the files cannot be given to $owner; run this as root"; }
    mv "$new" "$directory/$name"
    echo "written: $directory/$name"
done
[ -z "$owner" ] || chown "$owner" "$directory"
