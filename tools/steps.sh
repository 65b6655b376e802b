# Sourced by the scripts that run several commands in a row: a fresh folder, a log, and a line with the time of each step.

fresh_folder() { # the folder, then the name of its log; made anew, unless something else lies there
    out=$1
    log=$out/$2
    if [[ -e $out && ! -e $log ]]; then
        echo "error: $out exists and was not made by this script: name another directory" >&2
        exit 2
    fi
    rm -rf "$out"
    mkdir -p "$out"
}

step() { # what, then the command; its output goes to the log
    local what=$1 began=$SECONDS
    shift
    printf '%-52s' "$what"
    if ! "$@" >>"$log" 2>&1; then
        echo "failed; the end of $log:" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
    printf '%4d s\n' $((SECONDS - began))
}
