#!/bin/sh
set -eu
cd "$(dirname "$0")"
# shellcheck source=grafana.sh
. ./grafana.sh

usage() {
    cat <<'TEXT'
Annotate the dashboard with a deploy or an incident. The same text within ten minutes is posted once.

  annotate.sh --kind deploy|incident [--from TIME] [--to TIME] [--panel ID] [--dry-run] TEXT

  GRAFANA_URL         such as https://grafana.staging.sploot.internal
  GRAFANA_API_TOKEN   a token that may write annotations

  --kind        the kind of event; each kind has a colour
  --from TIME   begin: now, '40 minutes ago' (seconds, minutes, hours, days), or '2026-11-24 07:30' in UTC  [now]
  --to TIME     end; without it, the annotation is a line
  --panel ID    annotate only this panel  [all panels]
  --dry-run     print the annotation and send nothing

Exit codes: 0 done or already posted, 1 refused by Grafana, 64 usage, 69 curl or jq is missing, 70 Grafana does not answer,
77 Grafana refuses the token, 78 a setting is missing.
TEXT
}

# jq's clock: the dates of GNU, busybox and macOS have different options
milliseconds() {
    jq -nr --arg time "$1" '
        ($time | ascii_downcase) as $time
        | if $time == "now" then now
          elif $time | test("^[0-9]+ (second|minute|hour|day)s? ago$") then
            ($time | split(" ")) as [$number, $unit]
            | now - ($number | tonumber) * {"second": 1, "minute": 60, "hour": 3600, "day": 86400}[$unit | rtrimstr("s")]
          elif $time | test("^[0-9-]{10}[ t][0-9]{2}:[0-9]{2}(:[0-9]{2})? ?(z|utc)?$") then
            (if $time[16:17] == ":" then $time[16:19] else ":00" end) as $seconds
            | "\($time[:10])T\($time[11:16])\($seconds)Z" | fromdate
          else error("no time") end
        | floor * 1000' 2>/dev/null ||
        fail "$USAGE" "expected a time such as 'now', '40 minutes ago' or '2026-11-24 07:30' in UTC, got $1"
}

kind='' from=now to='' panel=null dry_run='' text='' end=''
while [ $# -gt 0 ]; do
    case $1 in
        --kind | --from | --to | --panel)
            [ $# -ge 2 ] || { usage >&2 && exit "$USAGE"; }
            case $1 in --kind) kind=$2 ;; --from) from=$2 ;; --to) to=$2 ;; --panel) panel=$2 ;; esac
            shift
            ;;
        --dry-run) dry_run=yes ;;
        --help | -h) usage && exit ;;
        -*) usage >&2 && exit "$USAGE" ;;
        *) text=${text:+$text }$1 ;;
    esac
    shift
done
case $kind in deploy | incident) ;; *) usage >&2 && exit "$USAGE" ;; esac
[ -n "$text" ] || { usage >&2 && exit "$USAGE"; }
case $panel in
    null) ;;
    '' | *[!0-9]*) fail "$USAGE" "expected a number for --panel, got $panel" ;;
esac
need curl jq

begin=$(milliseconds "$from")
[ -z "$to" ] || end=$(milliseconds "$to")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
jq --null-input --arg text "$text" --arg kind "$kind" --argjson time "$begin" --argjson until "${end:-null}" --argjson panel "$panel" \
    --slurpfile board ../dashboards/media-clustering-redis-streams.json \
    '{dashboardUID: $board[0].uid, $time, tags: ["sploot-cluster", $kind], $text}
     + (if $until then {timeEnd: $until} else {} end) + (if $panel then {panelId: $panel} else {} end)' >"$work/mark"
if [ -n "$dry_run" ]; then
    cat "$work/mark"
    exit
fi

need_grafana
grafana GET "/api/annotations?tags=sploot-cluster&tags=$kind&from=$((begin - 600000))&to=$((begin + 600000))"
[ "$status" = 200 ] || fail 1 "Grafana does not list its annotations: $(reason) ($status)"
if printf '%s' "$body" | jq --exit-status --arg text "$text" 'any(.[]; .text == $text)' >/dev/null; then
    echo "already posted: $text"
    exit
fi
grafana POST /api/annotations "$work/mark"
[ "$status" = 200 ] || fail 1 "Grafana refused the annotation: $(reason) ($status)"
echo "posted: $kind, $text"
