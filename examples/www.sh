#!/bin/sh
# A web server with two files of random bytes, 1MiB and 16MiB. Usage: www.sh PORT
set -eu
cd "${FABRIC_SERVICE_DIR:?is set for services of a topology file}"
head -c 1048576 /dev/urandom > 1MiB
head -c 16777216 /dev/urandom > 16MiB
exec python3 -m http.server "$1"
