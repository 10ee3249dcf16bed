#!/usr/bin/env bash
# Fetches other people's daemons into .peers, without installing them: installed, they would start,
# and serve or route this machine. Usage: fetch.sh test|bench
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  # The store's contract; whose next hops are the same.
  test) packages=(etcd-server bird2 libssh-gcrypt-4 libreadline8) ;;
  # fabric bench blackout
  bench) packages=(bird2 frr libyang2 libjson-c5 libcap2 libssh-gcrypt-4 libreadline8) ;;
  *) echo "usage: fetch.sh test|bench" >&2; exit 2 ;;
esac
stamp=.peers/.fetched-$1
[ "$(cat "$stamp" 2>/dev/null)" = "${packages[*]}" ] && exit 0

printf '\033[1m==>\033[0m %s\n' "fetching ${packages[*]} into .peers"
rm -rf .peers/archives
mkdir -p .peers/archives
apt-get update -qq
# As nobody, apt warns that it cannot drop its privileges here; as root it need not.
(cd .peers/archives && apt-get download -qq -o APT::Sandbox::User=root "${packages[@]}" >/dev/null)
for archive in .peers/archives/*.deb; do
  dpkg-deb -x "$archive" .peers
done
rm -rf .peers/archives
echo "${packages[*]}" > "$stamp"
