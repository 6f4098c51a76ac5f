# SPDX-License-Identifier: Apache-2.0
"""A TCP connection within a time, whatever the resolver does: `getaddrinfo` has no limit of its own.

A pass waits for what is asked here, and repairs nothing meanwhile. So names are looked up in a thread, which nobody
waits for longer than there is time, and which ends whenever the resolver does. There is never more than one for a name:
who asks again while it is under way waits for the same answer.
"""

from __future__ import annotations

import errno
import socket
import time
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeAlias

_Addresses: TypeAlias = list[tuple[Any, ...]]

_under_way: dict[tuple[str, int], Future[_Addresses]] = {}


def connect(host: str, port: int, seconds: float, *, each: float | None = None) -> socket.socket:
    """A connection to one of the host's addresses; its timeout is what was left.

    Args:
        host: a name or an address.
        port: of TCP.
        seconds: altogether, for looking up the name and for all its addresses.
        each: seconds for one address, where there are several.

    Raises:
        OSError: as the last address failed, or there is none; TimeoutError after so many seconds.
    """
    deadline = time.monotonic() + seconds
    failure: OSError = TimeoutError(f"no connection to {host} within {seconds:.3g} s")
    for family, kind, protocol, _, address in _look_up(host, port, seconds):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(left if each is None else min(left, each))
            made.connect(address)
        except OSError as error:
            made.close()
            failure = error
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise failure


def _look_up(host: str, port: int, seconds: float) -> _Addresses:
    key = host, port
    answer = _under_way.get(key)
    if answer is None:
        answer = _under_way[key] = Future()
        try:
            Thread(target=_ask, args=(key, answer), name="reconciler-resolve", daemon=True).start()
        except RuntimeError as error:
            del _under_way[key]
            raise OSError(errno.EAGAIN, f"no thread to look up {host}") from error
    try:
        return answer.result(max(seconds, 0))
    except TimeoutError as error:
        raise TimeoutError(f"no address of {host} within {seconds:.3g} s") from error


def _ask(key: tuple[str, int], answer: Future[_Addresses]) -> None:
    try:
        found: _Addresses | OSError = list(socket.getaddrinfo(*key, type=socket.SOCK_STREAM))
    except OSError as error:
        found = error
    except UnicodeError:  # a part of the name that is empty or too long
        found = socket.gaierror(socket.EAI_NONAME, "this cannot be the name of a host")
    del _under_way[key]
    if isinstance(found, OSError):
        answer.set_exception(found)
    else:
        answer.set_result(found)
