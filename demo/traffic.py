# SPDX-License-Identifier: Apache-2.0
"""Small traffic for the demo; each verb is one process inside one network namespace.

serve ADDRESS PORT          accept and close TCP connections until told to end
connect FROM TO PORT COUNT  open COUNT connections at once; prints how many were accepted
sink ADDRESS PORT           count UDP packets until told to end; prints how many came
flood FROM TO PORT          send UDP packets until told to end; prints how many went out
"""

from __future__ import annotations

import select
import signal
import socket
import sys
import threading
import time

PATIENCE = 0.6
"""Seconds; shorter than the second after which TCP tries again, so one attempt is one packet."""

PAUSE = 50e-6
"""Seconds between two packets of the flood."""

ending = threading.Event()


def end(*_: object) -> None:
    ending.set()


def serve(address: str, port: int) -> None:
    with socket.create_server((address, port), backlog=256) as server:
        server.settimeout(0.1)
        print("ready", flush=True)
        while not ending.is_set():
            try:
                server.accept()[0].close()
            except TimeoutError:
                continue


def connect(source: str, target: str, port: int, count: int) -> None:
    waiting = []
    for _ in range(count):
        client = socket.socket()
        client.settimeout(0)
        client.bind((source, 0))
        client.connect_ex((target, port))
        waiting.append(client)
    accepted = 0
    deadline = time.monotonic() + PATIENCE
    while waiting and (left := deadline - time.monotonic()) > 0:
        for client in select.select([], waiting, [], left)[1]:
            accepted += client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            waiting.remove(client)
            client.close()
    for client in waiting:
        client.close()
    print(accepted)


def sink(address: str, port: int) -> None:
    count = 0
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind((address, port))
        server.settimeout(0.1)
        print("ready", flush=True)
        while not ending.is_set():
            try:
                server.recv(64)
                count += 1
            except TimeoutError:
                continue
    print(count)


def flood(source: str, target: str, port: int) -> None:
    count = 0
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.bind((source, 0))
        client.connect((target, port))
        print("ready", flush=True)
        while not ending.is_set():
            try:
                client.send(b"demo")
                count += 1
            except ConnectionRefusedError:
                continue  # an ICMP answer to an earlier one
            time.sleep(PAUSE)
    print(count)


def main() -> None:
    signal.signal(signal.SIGTERM, end)
    match sys.argv[1:]:
        case ["serve", address, port]:
            serve(address, int(port))
        case ["connect", source, target, port, count]:
            connect(source, target, int(port), int(count))
        case ["sink", address, port]:
            sink(address, int(port))
        case ["flood", source, target, port]:
            flood(source, target, int(port))
        case _:
            sys.exit(__doc__)


main()
