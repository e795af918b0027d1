# Functions to call Grafana, sourced by the scripts in this folder. The token goes to curl through standard input; it is
# never printed and never an argument of a process.

# shellcheck shell=sh disable=SC2034  # the scripts that read this file use them
readonly USAGE=64 MISSING=69 UNREACHABLE=70 DENIED=77 REFUSED=78
newline='
'

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$2" >&2
    exit "$1"
}

need() {
    for program in "$@"; do
        command -v "$program" >/dev/null || fail "$MISSING" "$program is not installed: apt-get install $program"
    done
}

need_grafana() {
    [ -n "${GRAFANA_URL:-}" ] || fail "$REFUSED" "GRAFANA_URL is not set: export GRAFANA_URL=https://…"
    [ -n "${GRAFANA_API_TOKEN:-}" ] || fail "$REFUSED" "GRAFANA_API_TOKEN is not set: export a service account's token"
    case $GRAFANA_API_TOKEN in
        *[!A-Za-z0-9._=+/-]*) fail "$REFUSED" "GRAFANA_API_TOKEN has invalid characters: expected letters, digits and . _ = + / -" ;;
    esac
}

# grafana METHOD PATH [BODY FILE]: sets $body and $status of the answer. Exits if Grafana is unreachable or refuses the
# token; the caller handles other statuses.
grafana() {
    method=$1 path=$2
    if [ $# -gt 2 ]; then
        set -- --header 'Content-Type: application/json' --data-binary "@$3"
    else
        set --
    fi
    if ! answer=$(
        printf 'header = "Authorization: Bearer %s"\n' "$GRAFANA_API_TOKEN" |
            curl --config - --silent --show-error --max-time 30 --request "$method" "$@" \
                --write-out '\n%{http_code}' "${GRAFANA_URL%/}$path"
    ); then
        fail "$UNREACHABLE" "no answer from ${GRAFANA_URL}; check that GRAFANA_URL is correct and reachable from here"
    fi
    status=${answer##*"$newline"}
    body=${answer%"$newline"*}
    case $status in
        401 | 403) fail "$DENIED" "Grafana refuses the token ($status at $path): it needs permission to write dashboards, folders and annotations" ;;
    esac
}

# Print Grafana's error message on one line.
reason() {
    printf '%s' "$body" | jq -r '.message // .' 2>/dev/null || printf '%.200s' "$body"
}
