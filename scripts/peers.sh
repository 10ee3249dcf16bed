#!/usr/bin/env bash
# Fetches the routing daemons that `fabric bench blackout` measures beside the fabric into .peers,
# without installing them: installed, they would start and route this machine. Usage: peers.sh
set -euo pipefail
cd "$(dirname "$0")/.."
packages=(bird2 frr libyang2 libjson-c5 libcap2 libssh-gcrypt-4 libreadline8)
stamp=.peers/.fetched
[ "$(cat "$stamp" 2>/dev/null)" = "${packages[*]}" ] && exit 0

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
say "fetching ${packages[*]} into .peers"
rm -rf .peers
mkdir -p .peers/archives
apt-get update -qq
# As nobody, apt warns that it cannot drop its privileges here; as root it need not.
(cd .peers/archives && apt-get download -qq -o APT::Sandbox::User=root "${packages[@]}" >/dev/null)
for archive in .peers/archives/*.deb; do
  dpkg-deb -x "$archive" .peers
done
rm -rf .peers/archives
echo "${packages[*]}" > "$stamp"
