#!/bin/bash
# Sample agent without the SDK, in bash: it commits to a git workspace with hooks, and writes a log and an SQLite database.
# It does not use Savepoint. After each turn it reports its position to $SERVICES_URL/reports.
set -u
project=${WORKSPACE:-/workspace}/project # git requires that the user owns the folder it works in
mkdir -p "$project" && cd "$project" || exit 1
agent=${AGENT:-coder} pause=${TURN_SECONDS:-0.5} files=${FILES:-300}
export HOME=$PWD/.home GIT_AUTHOR_NAME=coder GIT_AUTHOR_EMAIL=coder@localhost GIT_COMMITTER_NAME=coder GIT_COMMITTER_EMAIL=coder@localhost
stop=0
trap 'stop=1' TERM INT

report() { # report JSON: send it by POST, with bash alone
  local host=${SERVICES_URL#http://} body=$1
  echo "$body"
  { exec 3<>"/dev/tcp/${host%%:*}/${host##*:}"; } 2>/dev/null || return 0
  printf 'POST /reports HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' "${#body}" "$body" >&3
  cat <&3 >/dev/null
  exec 3>&- 3<&-
}

sql() { sqlite3 -cmd '.timeout 5000' work.db "$@"; }

start() {
  if [ ! -d .git ]; then
    mkdir -p .home src
    git init -q -b main . || return 1
    git config gc.auto 0
    printf '.home/\nwork.db*\nagent.log\n.savepoint/\n' >.gitignore
    printf '#!/bin/sh\necho "hook $(git rev-parse --short HEAD)" >>agent.log\n' >.git/hooks/post-commit
    chmod 755 .git/hooks/post-commit
    for number in $(seq 1 "$files"); do
      mkdir -p "src/$((number % 20))"
      echo "module $number" >"src/$((number % 20))/m$number.txt"
    done
    ln -s src/1 latest
    ln -s /nowhere/at/all dangling
    git add -A && git commit -q -m "Begin" || return 1
  fi
  rm -f .git/index.lock .git/HEAD.lock .git/refs/heads/main.lock # left if the agent was killed during a commit
  sql 'PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS turns(n INTEGER PRIMARY KEY, head TEXT);' >/dev/null
}

facts() { # print JSON fields that identify the state: they must be the same after a restore
  local turn=$1 hook=no link
  [ -x .git/hooks/post-commit ] && hook=yes
  link="$(readlink latest),$(readlink dangling)"
  printf '"turn":%d,"head":"%s","rows":%d,"integrity":"%s","fsck":"%s","hook":"%s","links":"%s","tree":"%s","logLines":%d,"logDigest":"%s"' "$turn" \
    "$(git rev-parse HEAD)" "$(sql 'SELECT count(*) FROM turns')" "$(sql 'PRAGMA integrity_check' | head -1)" \
    "$(git fsck --no-dangling --no-progress >/dev/null 2>&1 && echo ok || echo bad)" "$hook" "$link" \
    "$(git ls-files -s | sha256sum | cut -c1-16)" "$(wc -l <agent.log 2>/dev/null || echo 0)" "$(sha256sum <agent.log | cut -c1-16)"
}

start || { echo "cannot create the workspace" >&2; exit 1; }
turn=$(sql 'SELECT coalesce(max(n),0) FROM turns')
report "{\"agent\":\"$agent\",\"pod\":\"${HOSTNAME:-}\",\"event\":\"start\",$(facts "$turn")}"
while [ $stop = 0 ]; do
  turn=$((turn + 1))
  file=src/$((turn % 20))/m$((turn % files + 1)).txt
  mkdir -p "${file%/*}"
  echo "turn $turn" >>"$file"
  git add -A && git commit -q -m "Turn $turn"
  sql "INSERT OR REPLACE INTO turns VALUES($turn, '$(git rev-parse HEAD)')"
  echo "turn $turn done" >>agent.log
  report "{\"agent\":\"$agent\",\"pod\":\"${HOSTNAME:-}\",\"event\":\"turn\",$(facts "$turn")}"
  sleep "$pause" &
  wait $! # a signal ends the wait, so the agent stops after a complete turn
done
exit 143
