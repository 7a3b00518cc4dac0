"""A libtorrent peer: peer.py TORRENT FOLDER seed|fetch. Only what the tracker tells, plain TCP."""
import sys

import libtorrent

torrent, folder, role = sys.argv[1:4]
session = libtorrent.session({
    "listen_interfaces": "0.0.0.0:6881",
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_outgoing_utp": False, "enable_incoming_utp": False,
    "in_enc_policy": int(libtorrent.enc_policy.disabled), "out_enc_policy": int(libtorrent.enc_policy.disabled),
    "alert_mask": int(libtorrent.alert.category_t.error_notification),
    "min_announce_interval": 1, "allow_multiple_connections_per_ip": True,
})
parameters = libtorrent.add_torrent_params()
parameters.ti = libtorrent.torrent_info(torrent)
parameters.save_path = folder
parameters.flags &= ~(libtorrent.torrent_flags.auto_managed | libtorrent.torrent_flags.paused)
if role == "seed":
    parameters.flags |= libtorrent.torrent_flags.seed_mode
session.add_torrent(parameters)
while True:
    session.wait_for_alert(1000)
    for alert in session.pop_alerts():
        print(type(alert).__name__, alert.message(), flush=True)
