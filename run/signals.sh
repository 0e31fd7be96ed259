# Sourced by scripts that go on after a command of theirs: SIGTERM, which a script gets alone (from make, timeout, a job
# scheduler), ends what it runs too. A bash that dies of it leaves its command running, one that catches it waits.
trap 'exit 143' TERM # behind the command under way, if that was not started by `relay`

# relay COMMAND...: runs it, and it gets the SIGTERM that the script gets; then nothing more is done. Ctrl-C reaches both, and
# the command decides what comes of it. Input is the script's.
relay() {
    local child='' status=0 caught=''
    trap 'caught=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM
    trap : INT
    (trap - INT QUIT TERM && exec "$@") <&0 & # bash would have it ignore Ctrl-C, and read nothing
    child=$!
    [ -z "$caught" ] || kill -TERM "$child" 2>/dev/null || true
    while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # which a signal ends early
    wait "$child" || status=$?
    trap - INT
    trap 'exit 143' TERM
    [ -z "$caught" ] || exit 143
    return "$status"
}
