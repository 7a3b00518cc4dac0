//! What a run gave.

use serde::Serialize;

use crate::units::Nanos;

/// Progress at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Virtual time.
    pub at: Nanos,
    /// Pieces verified since the start, over all nodes.
    pub pieces: u64,
    /// Nodes that have everything.
    pub finished: u32,
    /// Payload bytes sent by seeds.
    pub seed_sent: u64,
    /// Payload bytes received by anybody.
    pub payload: u64,
}

/// What became of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeReport {
    /// Its number; the seeds are the first.
    pub node: u32,
    /// The rack it stands in.
    pub rack: Option<u32>,
    /// When it started.
    pub started: Nanos,
    /// When it had everything.
    pub finished: Option<Nanos>,
    /// It runs at the end.
    pub alive: bool,
    /// It is one of ours and honest.
    pub ours: bool,
    /// Payload bytes sent.
    pub sent: u64,
    /// Payload bytes received.
    pub received: u64,
    /// Of these, bytes that were of no use.
    pub wasted: u64,
}

/// The figures of a run. Times are virtual nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The scenario's title.
    pub title: String,
    /// The seed of the run.
    pub seed: u64,
    /// Nodes that wanted the image.
    pub nodes: u32,
    /// Racks.
    pub racks: u32,
    /// Bytes that a node had to fetch.
    pub image_bytes: u64,
    /// Pieces of the image.
    pub pieces: u32,
    /// Pieces that a node had to get, by the network or as twins.
    pub fetched_pieces: u32,
    /// Formula (1): nobody can be faster on one switch.
    pub t_star: Nanos,
    /// Formula (4): nobody can be faster on this fabric.
    pub bound: Nanos,
    /// The last living node finished.
    pub makespan: Nanos,
    /// Half of them had finished.
    pub median: Nanos,
    /// Nodes that finished.
    pub finished: u32,
    /// Nodes that were alive and did not finish.
    pub unfinished: u32,
    /// Payload sent by the seeds.
    pub seed_sent: u64,
    /// Most bytes that entered a rack.
    pub rack_in_most: u64,
    /// Bytes that entered racks, on average.
    pub rack_in_mean: u64,
    /// Payload received by all.
    pub payload: u64,
    /// Payload received for nothing.
    pub wasted: u64,
    /// Messages, blocks not counted.
    pub messages: u64,
    /// These by kind.
    pub messages_by_kind: Vec<(String, u64)>,
    /// Bytes of messages with headers.
    pub message_bytes: u64,
    /// Most unverified bytes that a node held.
    pub peak_active_bytes: u64,
    /// Events of the simulator.
    pub events: u64,
    /// Steps of engines.
    pub steps: u64,
    /// Connections that engines closed, by reason.
    pub drops: Vec<(String, u64)>,
    /// What should never have happened; the first of them in words.
    pub violations: Vec<String>,
    /// How many there were.
    pub violation_count: u64,
    /// Hash of everything that the engines put out.
    pub trace: String,
    /// Every node.
    #[serde(skip)]
    pub per_node: Vec<NodeReport>,
    /// Progress over time.
    #[serde(skip)]
    pub samples: Vec<Sample>,
}

impl Report {
    /// Makespan over the bound.
    pub fn ratio(&self) -> f64 {
        self.makespan as f64 / self.bound.max(1) as f64
    }

    /// Payload of the seeds over the image.
    pub fn seed_copies(&self) -> f64 {
        self.seed_sent as f64 / self.image_bytes.max(1) as f64
    }

    /// Bytes into the worst rack over the image.
    pub fn rack_copies(&self) -> f64 {
        self.rack_in_most as f64 / self.image_bytes.max(1) as f64
    }

    /// Payload received for nothing over all of it.
    pub fn wasted_share(&self) -> f64 {
        self.wasted as f64 / self.payload.max(1) as f64
    }

    /// One line a node: times in seconds.
    pub fn nodes_csv(&self) -> String {
        let seconds = |nanos: Nanos| format!("{:.6}", nanos as f64 / 1e9);
        let mut text =
            "node,rack,started_seconds,finished_seconds,alive,ours,sent_bytes,received_bytes,wasted_bytes\n".to_owned();
        for node in &self.per_node {
            let fields = [
                node.node.to_string(),
                node.rack.map(|rack| rack.to_string()).unwrap_or_default(),
                seconds(node.started),
                node.finished.map(seconds).unwrap_or_default(),
                node.alive.to_string(),
                node.ours.to_string(),
                node.sent.to_string(),
                node.received.to_string(),
                node.wasted.to_string(),
            ];
            text.push_str(&fields.join(","));
            text.push('\n');
        }
        text
    }

    /// One line a sample.
    pub fn progress_csv(&self) -> String {
        let mut text = "seconds,pieces,nodes_finished,seed_bytes,payload_bytes\n".to_owned();
        for sample in &self.samples {
            let seconds = sample.at as f64 / 1e9;
            text.push_str(&format!(
                "{seconds:.6},{},{},{},{}\n",
                sample.pieces, sample.finished, sample.seed_sent, sample.payload
            ));
        }
        text
    }
}
