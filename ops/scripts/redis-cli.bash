# Source this file in bash: from then on, redis-cli takes the password of -u URL out of its arguments, which every user of
# the machine can read in the process list, and passes it in REDISCLI_AUTH. All other arguments stay as they are.
#
#   source ops/scripts/redis-cli.bash
#   redis-cli -u "$REDIS_URL" PING

redis-cli() {
    local arguments=() url rest login password user
    while (($#)); do
        if [[ $1 != -u || $# -lt 2 || $2 != *://*@* ]]; then
            arguments+=("$1")
            shift
            continue
        fi
        url=$2 rest=${2#*://}
        # the last @ ends the login: a password may contain others
        login=${rest%@*}
        user='' password=$login
        [[ $login != *:* ]] || { user=${login%%:*} password=${login#*:}; }
        arguments+=(-u "${url%%://*}://${rest##*@}")
        [[ -z $user ]] || arguments+=(--user "$(printf '%b' "${user//%/\\x}")")
        password=$(printf '%b' "${password//%/\\x}")
        shift 2
    done
    if [[ -n ${password-} ]]; then
        REDISCLI_AUTH=$password command redis-cli "${arguments[@]}"
    else
        command redis-cli "${arguments[@]}"
    fi
}
