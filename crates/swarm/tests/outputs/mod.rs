//! What scripted tests look for in what an engine puts out.

use rackswarm_swarm::{Output, Peer, Why};

pub(crate) fn drops(outputs: &[Output]) -> Vec<(Peer, Why)> {
    let dropped = |output: &Output| match output {
        Output::Drop(peer, why) => Some((*peer, *why)),
        _ => None,
    };
    outputs.iter().filter_map(dropped).collect()
}
