# SPDX-License-Identifier: Apache-2.0
"""Which of the Hosts that share a store this one is: a line in its data directory.

The data directory is what makes a Host: disks, memory states and guests' files lie there, so
the name lies beside them, and stays when the machine is renamed or its container is made
anew. Who copies a data directory to a second machine has to remove `host.id` from the copy.
"""

import re
import secrets
import socket

from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.written_once import read_or_write_once
from pycloud.core.model.identifiers import HostId, checked_id
from pycloud.errors import InvalidInput, StoreError

_FILE = "host.id"
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9-]+")
_MOST_OF_A_NAME = 40


def host_id_of(data: DataDirectory) -> HostId:
    """Return the id of the Host with this data directory; the first call chooses it.

    It begins with the machine's name, for people. Raises StoreError, InsufficientStorage.
    """
    path = data.root / _FILE
    text = read_or_write_once(path, _new_id)
    try:
        return HostId(checked_id(text))
    except InvalidInput as exc:
        raise StoreError(f"{path} holds {text!r}, which is no host id: {exc.message}") from exc


def _new_id() -> str:
    name = socket.gethostname().split(".", maxsplit=1)[0]
    readable = _NOT_IN_IDS.sub("-", name)[:_MOST_OF_A_NAME].strip("-")
    return f"{readable or 'host'}-{secrets.token_hex(6)}"
