#!/bin/sh
set -eu
called_from=$PWD
cd "$(dirname "$0")"
# shellcheck source=grafana.sh
. ./grafana.sh

usage() {
    cat <<'TEXT'
Publish the dashboards to Grafana. A second run changes nothing.

  deploy-dashboards.sh [--dry-run] [--folder TITLE] [FILE.json …]

  GRAFANA_URL         such as https://grafana.staging.sploot.internal
  GRAFANA_API_TOKEN   a token that may write dashboards and folders; it is never printed or passed as an argument

  --dry-run        list the dashboards and publish nothing
  --folder TITLE   the folder, created if it is missing  [Media Clustering]
  FILE.json …      the dashboards  [every file of ops/dashboards]

Exit codes: 0 done, 1 some dashboards were refused, 64 usage, 69 curl or jq is missing, 70 Grafana does not answer,
77 Grafana refuses the token, 78 a setting is missing or a file is not a dashboard.
TEXT
}

folder='Media Clustering' dry_run=''
# The files that are found replace the arguments: each goes to the end while the arguments are read from the beginning.
unread=$#
while [ "$unread" -gt 0 ]; do
    argument=$1
    shift
    unread=$((unread - 1))
    case $argument in
        --dry-run) dry_run=yes ;;
        --folder)
            { [ "$unread" -gt 0 ] && [ -n "$1" ]; } || { usage >&2 && exit "$USAGE"; }
            folder=$1
            shift
            unread=$((unread - 1))
            ;;
        --help | -h) usage && exit ;;
        -*) usage >&2 && exit "$USAGE" ;;
        /*) set -- "$@" "$argument" ;;
        *) set -- "$@" "$called_from/$argument" ;;
    esac
done
[ $# -gt 0 ] || set -- ../dashboards/*.json
need curl jq

for file in "$@"; do
    [ -r "$file" ] || fail "$REFUSED" "$file cannot be read"
    jq --exit-status '(.uid | type == "string" and length > 0 and length <= 40) and (.title | type == "string")' \
        "$file" >/dev/null 2>&1 || fail "$REFUSED" "$file is not a dashboard: expected a title and a uid of at most 40 characters"
done
folder_uid=$(jq -nr --arg title "$folder" '$title | ascii_downcase | gsub(" "; "-") | gsub("[^a-z0-9-]"; "") | .[:40]')

if [ -n "$dry_run" ]; then
    for file in "$@"; do
        jq -r --arg folder "$folder" '"would publish \(.title) (uid \(.uid), \([.panels[] | select(.type != "row")] | length) panels) into \($folder)"' "$file"
    done
    exit
fi

need_grafana
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT

grafana GET "/api/folders/$folder_uid"
if [ "$status" = 404 ]; then
    jq --null-input --arg uid "$folder_uid" --arg title "$folder" '{$uid, $title}' >"$work/folder"
    grafana POST /api/folders "$work/folder"
    # 412: another client has created the folder since
    [ "$status" = 200 ] || [ "$status" = 412 ] || fail 1 "folder $folder: $(reason)"
    echo "created folder $folder"
elif [ "$status" != 200 ]; then
    fail 1 "folder $folder: $(reason) ($status)"
fi

refused=0
for file in "$@"; do
    uid=$(jq -r .uid "$file") title=$(jq -r .title "$file")
    grafana GET "/api/dashboards/uid/$uid"
    if [ "$status" = 200 ] && printf '%s' "$body" | jq --exit-status --slurpfile mine "$file" --arg folder "$folder_uid" \
        '(.dashboard | del(.id, .version)) == ($mine[0] | del(.id, .version)) and .meta.folderUid == $folder' >/dev/null; then
        echo "unchanged: $title"
        continue
    fi
    jq --arg folder "$folder_uid" --arg message "deploy-dashboards.sh $(date -u +%Y-%m-%dT%H:%M:%SZ)" \
        '{dashboard: (del(.version) + {id: null}), folderUid: $folder, overwrite: true, message: $message}' "$file" >"$work/dashboard"
    grafana POST /api/dashboards/db "$work/dashboard"
    if [ "$status" = 200 ]; then
        echo "published: $title, version $(printf '%s' "$body" | jq -r .version), ${GRAFANA_URL%/}$(printf '%s' "$body" | jq -r .url)"
    else
        echo "refused: $title: $(reason) ($status)" >&2
        refused=1
    fi
done
exit "$refused"
