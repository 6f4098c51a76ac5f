#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# kernel.sh SUITE CACHE: download the kernel that `linux-image-amd64` of a Debian suite stands for, unpack it below
# CACHE/SUITE, and print the path of its vmlinuz. Nothing is installed, and the system's own apt configuration stays as it is:
# lists, packages and sources live in CACHE.
set -euo pipefail

readonly SUITE=$1 CACHE=$(readlink -f "$2")
readonly FOLDER=$CACHE/$SUITE
readonly APT=(
    -qq -o "Dir::Etc::sourcelist=$FOLDER/sources.list" -o Dir::Etc::sourceparts=/nonexistent
    -o "Dir::State::Lists=$FOLDER/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    -o APT::Get::List-Cleanup=0 -o APT::Default-Release= -o APT::Sandbox::User=root
)

# The meta package, and below it what may hold vmlinuz and the modules (two packages since Debian 14, one before).
wanted() {
    local -a todo=(linux-image-amd64) seen=()
    local package
    while ((${#todo[@]})); do
        package=${todo[0]} todo=("${todo[@]:1}")
        [[ " ${seen[*]} " == *" $package "* ]] && continue
        seen+=("$package")
        mapfile -t -O "${#todo[@]}" todo < <(
            apt-cache "${APT[@]}" show --no-all-versions "$package" | sed -n 's/^\(Pre-\)\?Depends: //p' |
                tr ',|' '\n\n' | awk '{print $1}' | grep -E '^linux-(image|binary|modules)-?[0-9]' || true
        )
    done
    printf '%s\n' "${seen[@]}"
}

download() {
    local mirror package
    mirror=$(apt-get indextargets --format '$(SITE) $(ORIGIN)' | awk '$2 == "Debian" {print $1; exit}')
    [[ $mirror ]] || { echo "kernel.sh: expected a Debian mirror among this system's apt sources" >&2; exit 1; }
    rm -rf "$FOLDER"
    mkdir -p "$FOLDER/lists/partial" "$FOLDER/deb"
    echo "deb $mirror $SUITE main" >"$FOLDER/sources.list"
    apt-get "${APT[@]}" update
    local -a packages
    mapfile -t packages < <(wanted)
    (cd "$FOLDER/deb" && apt-get "${APT[@]}" download "${packages[@]}")
    for package in "$FOLDER"/deb/*.deb; do dpkg -x "$package" "$FOLDER/root"; done
    # Since usr-merge the modules lie in one of two places; depmod wants lib/modules.
    [[ -d $FOLDER/root/lib/modules ]] || { mkdir -p "$FOLDER/root/lib" && ln -s ../usr/lib/modules "$FOLDER/root/lib/modules"; }
    # Since Debian 14 the kernel lies among its modules; it is looked for in boot.
    [[ -d $FOLDER/root/boot ]] || install -D "$FOLDER"/root/lib/modules/*/vmlinuz "$FOLDER/root/boot/vmlinuz-$(ls "$FOLDER/root/lib/modules")"
    depmod --basedir "$FOLDER/root" "$(ls "$FOLDER/root/lib/modules")" 2>/dev/null  # a warning about files that sid does not ship
    rm -rf "$FOLDER/deb" "$FOLDER/lists"
    touch "$FOLDER/ready"
}

[[ -e $FOLDER/ready ]] || download >&2
ls "$FOLDER"/root/boot/vmlinuz-*
