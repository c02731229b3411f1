#!/usr/bin/env bash
# Unpack Mesa's software Vulkan device, lavapipe, beside the system's own: DIR/libvulkan_lvp.so
#
#   tests/fakes/fetch_lavapipe.sh DIR
#
# Dawn, which WebGPU is here, refuses the one of Debian 12 (Mesa 22.3), so it is that of bookworm-backports. 11 MB to
# download; it needs what the system's mesa-vulkan-drivers needs (ci/install_system.sh).
set -euo pipefail
dir=$1
mkdir -p "$(dirname "$dir")"
exec 9>"$dir.lock"; flock 9 # two test runs may start at once
[ ! -e "$dir/libvulkan_lvp.so" ] || exit 0
part=$dir.part
rm -rf "$part" && mkdir -p "$part"/{sources,lists/partial,cache/archives/partial,package}
cat >"$part/sources/backports.sources" <<'SOURCES'
Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
apt=(apt-get -q -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$part/sources"
  -o "Dir::State::Lists=$part/lists" -o "Dir::Cache=$part/cache" -o "APT::Sandbox::User=$(id -un)")
cd "$part"
"${apt[@]}" update >/dev/null
"${apt[@]}" download mesa-vulkan-drivers/bookworm-backports >/dev/null
dpkg-deb -x mesa-vulkan-drivers_*.deb package
mkdir -p "$dir"
mv package/usr/lib/*/libvulkan_lvp.so "$dir/"
rm -rf "$part"
