#!/usr/bin/env bash
# A coordinator and three hospitals on this machine, as the processes that they would be on four: each hospital with its own file, keys and policy,
# connected over mutual TLS. Trains the heart task, prints the result, and stops everything, also after an error or Ctrl-C.
#
# Usage: examples/three-hospitals.sh [FOLDER] [ROUNDS]     FOLDER is made here (default: three-hospitals); ROUNDS is 5 where it is not given.
# Needs the command fedward on the PATH, as in an active environment.
set -euo pipefail

folder=${1:-three-hospitals} rounds=${2:-5}
hospitals=(cleveland hungarian va)
processes=()

say() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }

stop() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    if ((${#processes[@]})); then
        say "stopping"
        kill -TERM "${processes[@]}" 2>/dev/null || true
        wait "${processes[@]}" 2>/dev/null || true
    fi
    ((code == 0)) || say "failed; the logs are in $folder/*.log, $folder/*/run and $folder/*/*/run" >&2
    exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

free_port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
patiently() {  # wait a moment, unless something has ended or it has taken too long
    kill -0 "${processes[@]}" || exit 1
    ((SECONDS < 300)) || { echo "not everything is up after 300 s" >&2; exit 1; }
    sleep 0.5
}

command -v fedward >/dev/null || { echo "fedward is not on the PATH; activate its environment first" >&2; exit 2; }
[[ -e $folder ]] && { echo "$folder is there already; name another folder" >&2; exit 2; }
mkdir -p "$folder" && cd "$folder" && folder=$PWD  # names of sockets are short: paths below are relative
port=$(free_port)

say "Each hospital's own file, out of the data that come with Fedward"
fedward data export heart csv

say "The coordinator makes the federation"
fingerprint=$(fedward server init federation --host 127.0.0.1 --port "$port" --json | field fingerprint)
echo "fingerprint, which it reads out on the telephone: $fingerprint"

for name in "${hospitals[@]}"; do
    say "Hospital $name: keys and data, admission, joining, the code that it lets ask"
    fedward hospital init "$name" --name "$name" --task heart --data "csv/$name.csv"
    fedward server admit federation "$name/request.json" --out "$name-admitted.json" >/dev/null
    fedward hospital join "$name" "$name-admitted.json" --fingerprint "$fingerprint" >/dev/null
    fedward hospital approve "$name" --own
done

say "The coordinator opens its door"
fedward server start federation --listen "127.0.0.1:$port" >coordinator.log 2>&1 &
processes+=($!)
until [[ $(fedward server status federation) == *": running"* ]]; do patiently; done

say "The hospitals start: TensorFlow, the patients, the line to the coordinator"
for name in "${hospitals[@]}"; do
    fedward hospital start "$name" >"$name.log" 2>&1 &
    processes+=($!)
done
for name in "${hospitals[@]}"; do
    until grep -qs ready "$name/run/worker.log"; do patiently; done
done

say "Training, as soon as all ${#hospitals[@]} are connected"
fedward server run federation heart --rounds "$rounds" --set selection.minimum="${#hospitals[@]}"
fedward server status federation

for name in "${hospitals[@]}"; do
    fedward hospital audit verify "$name"
done
say "done; all that it made is in $folder"
