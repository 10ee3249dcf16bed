#!/usr/bin/env bash
# Prepares this machine for the fabric: Debian packages, virtual environment, libvirt, guest image.
# Idempotent; says what it changes. Usage: setup.sh [run|test]   ("test" adds what the tests need)
set -euo pipefail
cd "$(dirname "$0")/.."
want=${1:-run}

# Build and run.
packages=(qemu-system-x86 libvirt-daemon-system libvirt-clients libvirt-dev pkg-config gcc
  python3-dev python3-venv libnftables1 nftables iproute2 procps ca-certificates
  mmdebstrap debian-archive-keyring squashfs-tools erofs-utils zstd xz-utils cpio kmod dropbear-bin
  curl jq tcpdump openssh-client)
# The applications and decoders the tests use.
[ "$want" = test ] && packages+=(openssh-server iperf3 iputils-ping bind9-dnsutils dnsmasq-base tshark)

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'error: %s\n' "$1" >&2; printf 'cure: %s\n' "$2" >&2; exit 3; }

[ "$(id -u)" = 0 ] || die "make setup needs root" "run it with sudo"
command -v apt-get >/dev/null || die "no apt-get here" "use Debian 12 or newer, or Ubuntu 24.04 or newer"

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "installing Debian packages: ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    die "apt did not install them" "see that apt-get update works; Ubuntu needs its component universe"
else
  say "Debian packages: all there"
fi

# The system's Python: it comes with headers, as libvirt does.
/usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  die "$(/usr/bin/python3 -V) is too old: 3.11 is needed" "use Debian 12 or newer, or Ubuntu 24.04 or newer"
stamp=.venv/.installed
digest=$(sha256sum pyproject.toml | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" != "$digest" ]; then
  say "virtual environment: .venv (compiles libvirt-python; about a minute)"
  [ -x .venv/bin/python ] || /usr/bin/python3 -m venv .venv
  .venv/bin/pip install -q --disable-pip-version-check -e '.[dev]' 2> >(grep -v '^WARNING: Location' >&2)
  echo "$digest" > "$stamp"
else
  say "virtual environment: up to date"
fi

[ "$want" != test ] || scripts/fetch.sh test

started=$(.venv/bin/python -c "from fabric.host.vmm.libvirtd import ensure_libvirtd; print(ensure_libvirtd())")
[ "$started" = True ] && say "libvirt: started libvirtd" || say "libvirt: answers"
allowed=$(.venv/bin/python -c "from fabric.host.vmm.apparmor import AppArmor as A; print(A().ensure() and A().local)")
[ "$allowed" = False ] || say "AppArmor: guests may use templates in /dev/shm/fabric (our lines in $allowed)"
say "guest image:"
.venv/bin/python images/build.py
say "ready: .venv/bin/fabric"
