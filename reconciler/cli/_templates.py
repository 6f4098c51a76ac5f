# SPDX-License-Identifier: Apache-2.0
"""The files that `init` writes. Nothing in here is read by anything but people and the reconciler itself."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

DEMO_INTERFACE: Final = "rc-demo0"
DEMO_PEER: Final = "rc-demo1"
DEMO_PORT: Final = 8080


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What the example chain runs.

    Attributes:
        digest: "sha256:..." of the archive.
    """

    name: str
    version: str
    digest: str


REPOSITORY: Final = """\
# yaml-language-server: $schema=schema/v1alpha1/repository.schema.json
apiVersion: reconciler/v1alpha1
kind: Repository
metadata:
  name: {name}
spec:
  allowEmpty: false  # a commit without any chain is refused; true lets it take everything off the hosts
"""


def repository(name: str) -> str:
    """`reconciler.yaml`."""
    return REPOSITORY.format(name=_text(name))


def _text(value: str) -> str:
    """`value` as text in YAML, also where it looks like a number or holds a colon."""
    plain = re.fullmatch(r"[a-z/][a-z0-9/_-]*", value) and value not in ("true", "false", "null")
    return value if plain else json.dumps(value)


CHAIN: Final = """\
# yaml-language-server: $schema=../schema/v1alpha1/chain.schema.json
# `reconciler explain chain.spec.members` says what a field means.
apiVersion: reconciler/v1alpha1
kind: Chain
metadata:
  name: demo-ingress
spec:
  hosts:
    matchLabels: {{role: demo}}  # the label stands in the host's own configuration
  priority: 100
  hook:
    type: xdp
    interfaces: [{interface}]
  members:
    - name: ratelimit
      package:
        name: {package}
        version: {version}
        digest: {digest}
      program: ratelimit
      params:
        rate: 10  # new connections per second
      maps:
        ports:
          entries:
            - {{key: {port}, value: 0}}  # 0: the rate above
"""


def chain(example: Example) -> str:
    """`chains/demo.yaml`: limits new connections to one port of one interface that nothing else uses."""
    return CHAIN.format(
        interface=DEMO_INTERFACE,
        port=DEMO_PORT,
        package=example.name,
        version=example.version,
        digest=example.digest,
    )


GROUP: Final = """\
# yaml-language-server: $schema=../schema/v1alpha1/hostgroup.schema.json
# The hosts on paper, for `reconciler review`: what it must know of hosts that it cannot see. Hosts ignore this file.
apiVersion: reconciler/v1alpha1
kind: HostGroup
metadata:
  name: demo
spec:
  labels: {{role: demo}}
  count: 1
  interfaces:
    - names: [{interface}]
  secureMode: audit
  policy:
    tolerations: []
    signers:
      - name: {signer}
        packages: ["*"]
        publicKey: |
{key}
"""


def group(name: str, public_key: str) -> str:
    """`hosts/demo.yaml`: the hosts of the example chain, and who may sign packages there."""
    key = "\n".join(f"          {line}" for line in public_key.strip().splitlines())
    return GROUP.format(interface=DEMO_INTERFACE, signer=_text(f"{name}-packages"), key=key)


CONFIG: Final = """\
# yaml-language-server: $schema={schema}
# The configuration of one host: whom it trusts, and where its manifests come from. No commit changes it.
apiVersion: reconciler/v1alpha1
kind: Config
metadata:
  name: {name}
spec:
  labels: {{role: demo}}
  source:
    url: {url}
    allowFile: true  # the source lies on this host; https:// and ssh:// need no such permission
    ref: refs/heads/main
    repository: {name}
    minimumCommit: {commit}  # nothing older than this is ever taken
    interval: 10s
    driftInterval: 5s
  trust:
    commits:
      allowedSigners: allowed_signers
    signers:
      - name: {signer}
        packages: ["*"]
        key: {{file: package.pub}}
  secureMode:
    mode: audit  # enforce removes what nobody declared
    namespaces: [host]
    interfaces: [{interface}]  # and nothing else on this host
  paths:
    state: {state}
    pins: {pins}
    run: {run}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where things of the host lie; absolute paths."""

    schema: str
    url: str
    commit: str
    state: str
    pins: str
    run: str


def config(name: str, host: Host) -> str:
    """The host's configuration; the public halves of the keys lie beside it."""
    return CONFIG.format(
        name=_text(name),
        signer=_text(f"{name}-packages"),
        interface=DEMO_INTERFACE,
        schema=host.schema,
        url=_text(host.url),
        commit=_text(host.commit),
        state=_text(host.state),
        pins=_text(host.pins),
        run=_text(host.run),
    )


TEST: Final = """\
# yaml-language-server: $schema=../schema/v1alpha1/packettest.schema.json
# Packets, and what the chain must do with them. `reconciler test` tries them, attached to nothing.
apiVersion: reconciler/v1alpha1
kind: PacketTest
metadata:
  name: demo
spec:
  chain: demo-ingress
  packets:
    - name: ten new connections in one second
      protocol: tcp
      to: "198.51.100.2:{port}"
      flags: [syn]
      times: 10
      verdict: pass
    - name: one more
      protocol: tcp
      to: "198.51.100.2:{port}"
      flags: [syn]
      verdict: drop
    - name: a connection that is there already
      protocol: tcp
      to: "198.51.100.2:{port}"
      flags: [ack]
      payload: 100
      verdict: pass
    - name: another port
      protocol: tcp
      to: "198.51.100.2:22"
      flags: [syn]
      times: 20
      verdict: pass
"""


def packet_test() -> str:
    """`tests/demo.yaml`: packets for the example chain."""
    return TEST.format(port=DEMO_PORT)


CI_FILES: Final = {
    "github/reconciler-review.yml": (".github/workflows/reconciler-review.yml", 0o644),
    "github/reconciler-review-comment.yml": (".github/workflows/reconciler-review-comment.yml", 0o644),
    "gitlab-ci.yml": (".gitlab-ci.yml", 0o644),
    "review.sh": ("ci/review.sh", 0o755),
}
"""Jobs that review changes: file that ships to its place in the repository, and its mode."""

PRE_COMMIT: Final = """\
# `pre-commit install` runs both before each commit (https://pre-commit.com). The review stops nothing:
# whether what gets weaker is meant is asked in the pull request.
repos:
  - repo: local
    hooks:
      - id: reconciler-validate
        name: reconciler validate
        entry: reconciler validate .
        language: system
        pass_filenames: false
      - id: reconciler-review
        name: reconciler review
        entry: reconciler review --worktree
        language: system
        verbose: true
        pass_filenames: false
"""

GITIGNORE: Final = """\
# Keys never belong into this repository, not even for a moment.
*.pem
*.key
id_*
*-keys/
# What ci/review.sh leaves.
/reconciler-review/
"""

README: Final = """\
# {name}

Which eBPF programs run on which hosts. What is merged here is what runs: `reconciler` on each host polls this
repository, verifies who signed each commit and each package, and makes its hooks equal to what stands here.

| path | what |
|---|---|
| `reconciler.yaml` | the name of this repository |
| `chains/` | one chain per document: which programs, in which order, on which hooks of which hosts |
| `tests/` | packets, and what a chain must do with them |
| `.github/`, `.gitlab-ci.yml`, `ci/` | jobs that review changes; keep those of your forge |
| `packages/` | signed packages; chains name them by version and digest |
| `hosts/` | the fleet on paper, for reviews; hosts ignore it |
| `schema/` | for your editor: completion and checks while you type |

## A change

```sh
git switch -c faster
reconciler validate .           # every finding, with file, line and column; needs no privileges
reconciler test .               # packets of tests/ through the chains; needs root and a host's configuration
reconciler review --worktree    # what changes, on which hosts, and what gets weaker
git commit -am 'demo: 20 connections per second'
ci/review.sh main faster        # the comment of the pull request, in reconciler-review/review.md
git push -u origin faster       # open the pull request; once it is approved:
git switch main && git merge --ff-only faster && git push
```

On a host, `reconciler status --reviewed reconciler-review/review.json` says whether it runs what was reviewed.

Commits are signed with the SSH key that `init` made (`git config user.signingkey`). Hosts accept commits only from the
keys in their own `allowed_signers`, so merge by fast-forward, or give a merge bot a key of its own: a forge's own
signature is not accepted. Who works in a clone of their own configures it once, and every host lists their key in
`allowed_signers` (the last command prints the line):

```sh
git config gpg.format ssh && git config commit.gpgsign true
git config user.signingkey ~/.ssh/id_ed25519
printf '%s namespaces="git" %s\\n' "$(git config user.email)" "$(cut -d' ' -f1,2 ~/.ssh/id_ed25519.pub)"
```

The jobs install the reconciler from where pip finds it. While no index that you use has it, put the address of a wheel
(`make wheel` in the reconciler's repository) where they say `RECONCILER_PACKAGE`.

## A new package

```sh
reconciler package build FOLDER --into packages
reconciler package sign packages/NAME-VERSION.tar.gz --key PACKAGE.pem
reconciler package inspect packages/NAME-VERSION.tar.gz    # prints the digest that the chain names
```

Keys stay outside of this repository. `reconciler explain chain` lists what a chain can say.
"""


def readme(name: str) -> str:
    """`README.md` of the repository."""
    return README.format(name=name)
