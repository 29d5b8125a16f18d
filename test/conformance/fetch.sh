#!/usr/bin/env bash
# fetch.sh DIRECTORY: OTP's own NIF test suite, of the machine's own Debian release, into DIRECTORY/suite.
#
# The source package comes with an apt that has its own lists and its own one source, made of the machine's entries: the
# machine's apt is not touched, and no rights are needed. CONFORMANCE_OTP=path takes a source tree that is already there.
set -euo pipefail

directory=$1
suite=$directory/suite
fail() { printf 'conformance: %s\n' "$*" >&2; exit 1; }

# What is taken out of the source tree; the C sources of three more tests are those of the driver suite.
parts=(erts/emulator/test/nif_SUITE.erl erts/emulator/test/nif_SUITE_data erts/emulator/test/erl_drv_thread_SUITE_data
       lib/common_test/include)

[[ -f $suite/complete ]] && exit 0
rm -rf "$suite"
mkdir -p "$suite"

take() {
  tar -C "$1" -cf - "${parts[@]}" | tar -C "$suite" -xf -
  touch "$suite/complete"
}

if [[ -n ${CONFORMANCE_OTP:-} ]]; then
  [[ -d $CONFORMANCE_OTP/erts ]] || fail "CONFORMANCE_OTP=$CONFORMANCE_OTP is no source tree of OTP"
  take "$CONFORMANCE_OTP"
  exit 0
fi

command -v apt-get >/dev/null || fail "there is no apt-get here; set CONFORMANCE_OTP to a source tree of OTP"
command -v xz >/dev/null || fail "xz is needed to unpack the sources (Debian: xz-utils)"

# The machine's own entries of a Debian archive, as deb-src, each with its own key: another one for the same archive is
# refused by apt.
apt=$directory/apt
mkdir -p "$apt"/{lists,cache,download}/partial
rm -f "$apt"/*.sources "$apt"/*.list
found=
for file in /etc/apt/sources.list.d/*.sources; do
  [[ -f $file ]] || continue
  awk 'BEGIN { RS = ""; ORS = "\n\n" } /(^|\n)Types:[^\n]*deb/ && /(^|\n)Components:[^\n]*main/ && /\/debian/ {
         gsub(/(^|\n)Types:[^\n]*/, "\nTypes: deb-src"); print }' "$file" >> "$apt/machine.sources"
done
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
  [[ -f $file ]] || continue
  sed -nE 's/^deb (.*\/debian.* main.*)$/deb-src \1/p' "$file" >> "$apt/machine.list"
done
for file in "$apt"/machine.sources "$apt"/machine.list; do
  if [[ -s $file ]]; then found=yes; else rm -f "$file"; fi
done
[[ -n $found ]] || fail "apt has no entry of a Debian archive; set CONFORMANCE_OTP to a source tree of OTP"

own=(-q -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$apt" -o "Dir::State::Lists=$apt/lists"
     -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=)

(
  cd "$apt/download"
  apt-get "${own[@]}" update
  apt-get "${own[@]}" --download-only --only-source source erlang
) >"$directory/fetch.log" 2>&1 || { tail -n 20 "$directory/fetch.log" >&2; fail "the source package could not be fetched"; }

archive=("$apt"/download/erlang_*.orig.tar.*)
[[ -f ${archive[0]} ]] || fail "the source package has no original archive (see $directory/fetch.log)"
tar -C "$suite" --strip-components=1 --wildcards -xf "${archive[0]}" "${parts[@]/#/*/}"
touch "$suite/complete"
rm -rf "$apt"
