#!/bin/sh
set -eu
cd "$(dirname "$0")"
readonly USAGE=64 MISSING=69 UNREACHABLE=70 REFUSED=78
# one alert per route: Slack, Slack with @oncall, Slack and PagerDuty
readonly DEFAULTS='MediaClusterFailuresHigh MediaClusterLatencyHighSustained MediaClusterStalled'

usage() {
    cat <<'TEXT'
Send test alerts, to check that notifications arrive. Each is marked [TEST by …] and synthetic="true", and ends by itself.

  fire-alerts.sh [--dry-run] [--environment staging|production] [--alert NAME …| --all] [--minutes N] [--resolve]
                 [--verify] [--yes]

  ALERTMANAGER_URL   [http://127.0.0.1:9093]

  --dry-run        print the payload and the receivers of each alert by ops/config/alertmanager.yaml; send nothing
  --environment    the label on the alerts; production needs a confirmation at a terminal, or --yes  [staging]
  --alert NAME     an alert of ops/alerts; repeatable  [one alert per route]
  --all            all alerts
  --minutes N      minutes until the alerts end by themselves  [5]
  --resolve        end the alerts now
  --verify         wait until Alertmanager has the alerts, and check that no notification failed
  --yes            do not ask for a confirmation

Exit codes: 0 done, 1 Alertmanager refused them or a notification failed, 64 usage, 69 curl or jq is missing,
70 Alertmanager does not answer, 78 not confirmed.
TEXT
}

fail() {
    printf 'fire-alerts.sh: %s\n' "$2" >&2
    exit "$1"
}

environment=staging minutes=5 dry_run='' all='' resolve='' verify='' yes='' names=''
while [ $# -gt 0 ]; do
    case $1 in
        --environment | --alert | --minutes)
            [ $# -ge 2 ] || { usage >&2 && exit "$USAGE"; }
            case $1 in --environment) environment=$2 ;; --alert) names="$names $2" ;; --minutes) minutes=$2 ;; esac
            shift
            ;;
        --dry-run) dry_run=yes ;;
        --all) all=yes ;;
        --resolve) resolve=yes ;;
        --verify) verify=yes ;;
        --yes) yes=yes ;;
        --help | -h) usage && exit ;;
        *) usage >&2 && exit "$USAGE" ;;
    esac
    shift
done
case $environment in staging | production) ;; *) usage >&2 && exit "$USAGE" ;; esac
case $minutes in
    [1-9] | [1-9][0-9] | [1-9][0-9][0-9]) ;;
    *) fail "$USAGE" "expected 1 to 999 for --minutes, got $minutes" ;;
esac
for program in curl jq; do
    command -v "$program" >/dev/null || fail "$MISSING" "$program is not installed: apt-get install $program"
done
names=${names:-$DEFAULTS}

# Labels and links of every alert. The rule files keep each of these on one line, so awk can read them.
alerts=$(
    awk '
        /^ +- alert: / { name = $3 }
        /^ +labels: [{]/ { sub(/^ +labels: [{]/, ""); sub(/[}]$/, ""); labels = $0 }
        /^ +summary: / { sub(/^ +summary: /, ""); summary = $0 }
        /^ +runbook_url: / { runbook = $2 }
        /^ +dashboard_url: / { printf "%s\t%s\t%s\t%s\t%s\n", name, labels, summary, runbook, $2 }
    ' ../alerts/*.yaml | jq -nR '[inputs | split("\t") | {
        labels: ({alertname: .[0]} + (.[1] | split(", ") | map(split(": ") | {(.[0]): (.[1] | gsub("\""; ""))}) | add)),
        annotations: {summary: .[2], runbook_url: .[3], dashboard_url: .[4]}
    }]'
)
[ -z "$all" ] || names=$(printf '%s' "$alerts" | jq -r 'map(.labels.alertname) | join(" ")')
unknown=$(printf '%s' "$alerts" | jq -r --arg names "$names" '(($names | split(" ") - [""]) - [.[].labels.alertname])[0] // empty')
[ -z "$unknown" ] || fail "$USAGE" "unknown alert $unknown; ops/alerts has all alerts"

# jq's clock: the dates of GNU, busybox and macOS have different options
now=$(jq -nr 'now | floor | todate')
end=$(jq -nr --arg minutes "$minutes" 'now + 60 * ($minutes | tonumber) | floor | todate')
[ -z "$resolve" ] || end=$now
payload=$(
    printf '%s' "$alerts" | jq --arg who "${USER:-$(id -un)}" --arg environment "$environment" --arg now "$now" --arg until "$end" \
        --arg names "$names" '
        [.[] | select(.labels.alertname as $name | $names | split(" ") | index($name))
         | .labels += {synthetic: "true", $environment}
         | .annotations.summary = "[TEST by \($who)] \(.annotations.summary)"
         | .annotations.description = "A test of the alert routing. Nothing is wrong; no action is needed."
         # without startsAt, Alertmanager uses endsAt as the start
         | .startsAt = $now | .endsAt = $until]'
)

if [ -n "$dry_run" ]; then
    printf '%s\n' "$payload"
    if ! command -v amtool >/dev/null; then
        echo "receivers unknown: amtool is not installed (apt-get install prometheus-alertmanager)" >&2
        exit
    fi
    printf '%s' "$payload" | jq -r '.[].labels | .alertname, ([to_entries[] | "\(.key)=\(.value)"] | join(" "))' |
        while read -r name && read -r labels; do
            # shellcheck disable=SC2086  # no label of an alert contains a space
            receivers=$(amtool config routes test --config.file=../config/alertmanager.yaml $labels 2>/dev/null | tr '\n' ' ')
            printf '%s would notify %s\n' "$name" "$(echo "$receivers" | sed 's/ *$//; s/,/, /g')"
        done
    exit
fi

url=${ALERTMANAGER_URL:-http://127.0.0.1:9093}
url=${url%/}
if [ "$environment" = production ] && [ -z "$yes" ]; then
    [ -t 0 ] || fail "$REFUSED" "production needs --yes, because no terminal can ask for a confirmation"
    printf 'This notifies the engineers on call for production (%s). Type production to continue: ' "$url" >&2
    read -r answer || answer=''
    [ "$answer" = production ] || fail "$REFUSED" "not confirmed; nothing was sent"
fi

ask() {
    curl --silent --show-error --max-time 30 "$@" || fail "$UNREACHABLE" "no answer from $url; check that ALERTMANAGER_URL is correct and reachable from here"
}
failed_notifications() {
    metrics=$(ask "$url/metrics")
    printf '%s\n' "$metrics" | awk '/^alertmanager_notification(s|_requests)_failed_total/ { failed += $2 } END { print failed + 0 }'
}

[ -z "$verify" ] || before=$(failed_notifications)
status=$(
    printf '%s' "$payload" |
        ask --output /dev/null --write-out '%{http_code}' --header 'Content-Type: application/json' --data-binary @- "$url/api/v2/alerts"
)
[ "$status" = 200 ] || fail 1 "Alertmanager refused the alerts ($status)"
wanted=0
for name in $names; do
    wanted=$((wanted + 1))
    if [ -n "$resolve" ]; then echo "ended: $name"; else echo "fired: $name, until $end"; fi
done
[ -n "$verify" ] || exit 0

# group_wait is 15 s; twice that is enough for the first notification
seconds=0 held=0
until [ -n "$resolve" ] || [ "$held" -ge "$wanted" ] || [ "$seconds" -ge 30 ]; do
    listed=$(ask --get --data-urlencode 'filter=synthetic="true"' "$url/api/v2/alerts")
    held=$(printf '%s' "$listed" | jq '[.[] | select(.receivers | length > 0)] | length')
    [ "$held" -ge "$wanted" ] || sleep 1
    seconds=$((seconds + 1))
done
[ -n "$resolve" ] || [ "$held" -ge "$wanted" ] || fail 1 "Alertmanager has $held of $wanted alerts"
sleep "${FIRE_ALERTS_SETTLE_S:-20}"
after=$(failed_notifications)
[ "$after" -eq "$before" ] || fail 1 "$((after - before)) notifications failed; check Alertmanager's log, its secrets and its network access"
echo "verified: Alertmanager has the alerts, and no notification failed"
