"""Judges torrents with libtorrent. Reads one command a line as JSON, answers each with one line of JSON.

make:  path, torrent, piece_length, version, private -> makes the torrent of a file
read:  torrent                                       -> what libtorrent understands
check: torrent, folder                               -> whether libtorrent finds every piece in that folder
"""

import json
import os
import sys
import time

import warnings

import libtorrent as lt

warnings.simplefilter("ignore", DeprecationWarning)


def make(path, torrent, piece_length, version, private):
    flags = {"v1": lt.create_torrent.v1_only, "v2": lt.create_torrent.v2_only, "hybrid": 0}[version]
    files = lt.list_files(path) if hasattr(lt, "list_files") else None
    if files is not None:
        made = lt.create_torrent(files, piece_length, flags)
    else:
        storage = lt.file_storage()
        lt.add_files(storage, path)
        made = lt.create_torrent(storage, piece_length, flags)
    made.set_priv(private)
    made.add_tracker("http://10.0.0.1:6969/announce", 0)
    made.add_tracker("udp://10.0.0.2:6969", 1)
    lt.set_piece_hashes(made, os.path.dirname(path))
    with open(torrent, "wb") as out:
        out.write(lt.bencode(made.generate()))
    return read(torrent)


def read(torrent):
    info = lt.torrent_info(torrent)
    hashes = info.info_hashes()
    return {
        "v1": str(hashes.v1) if hashes.has_v1() else None,
        "v2": str(hashes.v2) if hashes.has_v2() else None,
        "name": info.name(),
        "length": info.files().file_size(0),
        "piece_length": info.piece_length(),
        "pieces": info.num_pieces(),
        "private": info.priv(),
        "trackers": [tracker.url for tracker in info.trackers()],
    }


def check(torrent, folder):
    session = lt.session({
        "listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False,
        "enable_upnp": False, "enable_natpmp": False,
    })
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(torrent)
    parameters.save_path = folder
    parameters.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    parameters.trackers = []
    handle = session.add_torrent(parameters)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = handle.status()
        if status.errc.value() != 0:
            return {"error": status.errc.message()}
        if status.state in (lt.torrent_status.seeding, lt.torrent_status.finished, lt.torrent_status.downloading):
            return {"pieces": status.num_pieces}
        time.sleep(0.01)
    return {"error": "libtorrent did not come to an end"}


COMMANDS = {"make": make, "read": read, "check": check}
for line in sys.stdin:
    command = json.loads(line)
    name = command.pop("command")
    try:
        answer = COMMANDS[name](**command)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
