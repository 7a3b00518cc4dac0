//! What goes wrong, when its time has come.

use super::node::Life;
use super::{Event, World};
use crate::chance::{Stream, below};
use crate::net::Network;
use crate::scenario::{Fault, Who};
use crate::units::{Nanos, Rate};
use swarm::{Input, Peer};

impl<N: Network> World<N> {
    pub(super) fn fault(&mut self, number: u32) {
        let fault = self.scenario.faults[number as usize].clone();
        let until = fault.lasts().map_or(Nanos::MAX, |lasts| self.now() + lasts);
        match &fault {
            Fault::Crash { who, back_after, keeps_disk, silent, .. } => {
                self.crash_all(&self.chosen(who, number.into()), back_after.map(|span| span.0), *keeps_disk, *silent);
            }
            Fault::SeedDies { back_after, .. } => {
                self.crash_all(&self.chosen(&Who::Seeds, 0), back_after.map(|span| span.0), true, false);
            }
            Fault::RackPower { rack, back_after, .. } => {
                self.crash_all(&self.chosen(&Who::Rack(*rack), 0), Some(back_after.0), true, true);
            }
            Fault::LaneMember { rack, .. } => {
                let members = self.chosen(&Who::Rack(*rack), 0);
                let running = members.into_iter().filter(|node| self.nodes[*node as usize].is_running());
                let busiest = running.max_by_key(|node| self.nodes[*node as usize].carried);
                self.crash_all(&busiest.into_iter().collect::<Vec<_>>(), None, true, false);
            }
            Fault::Freeze { who, .. } => {
                for node in self.chosen(who, number.into()) {
                    self.nodes[node as usize].frozen_until = until;
                }
            }
            Fault::SlowDisk { who, rate, .. } => self.set_disks(&self.chosen(who, number.into()), *rate),
            Fault::SlowLink { who, rate, .. } => self.set_links(&self.chosen(who, number.into()), *rate),
            Fault::TrackerDead { .. } => self.tracker_dead = true,
            Fault::TrackerSlow { by, .. } => self.tracker_by = by.0,
            Fault::TrackerStale { .. } => self.tracker_stale = true,
            Fault::RackUplink { rack, left, .. } => {
                let millionths = (left * 1e6).round() as u64;
                if let Some(full) = self.scenario.uplink() {
                    self.net.ports().set_uplink(*rack, full, millionths, until);
                }
            }
            Fault::Delay { by, .. } => self.net.ports().delay(by.0, until),
            Fault::Partition { from, to, .. } => {
                let (from, to) = (self.chosen(from, number.into()), self.chosen(to, 500 + u64::from(number)));
                self.net.ports().partition(&from, &to, until);
            }
            Fault::Reset { count, .. } => self.reset(*count, number),
        }
        let ends = !matches!(
            fault,
            Fault::Crash { .. } | Fault::SeedDies { .. } | Fault::RackPower { .. } | Fault::LaneMember { .. }
        );
        if ends && until < Nanos::MAX {
            self.agenda.at(until, Event::Mended(number));
        }
    }

    pub(super) fn mended(&mut self, number: u32) {
        let fault = self.scenario.faults[number as usize].clone();
        match &fault {
            Fault::SlowDisk { who, .. } => self.set_disks(&self.chosen(who, number.into()), self.scenario.fabric.disk),
            Fault::SlowLink { who, .. } => self.set_links(&self.chosen(who, number.into()), self.scenario.fabric.rate),
            Fault::TrackerDead { .. } => self.tracker_dead = false,
            Fault::TrackerSlow { .. } => self.tracker_by = 0,
            Fault::TrackerStale { .. } => self.tracker_stale = false,
            Fault::RackUplink { rack, .. } => {
                if let Some(full) = self.scenario.uplink() {
                    self.net.ports().set_uplink(*rack, full, 1_000_000, 0);
                }
            }
            _ => {
                let now = self.now();
                self.net.ports().sweep(now);
            }
        }
    }

    fn crash_all(&mut self, nodes: &[u32], back_after: Option<Nanos>, keeps_disk: bool, silent: bool) {
        for &node in nodes {
            if self.nodes[node as usize].life != Life::Running {
                continue;
            }
            let before = if silent { self.open_links(node) } else { Vec::new() };
            self.crash(node, back_after.is_some(), keeps_disk, silent);
            if let Some(wait) = back_after {
                self.agenda.after(wait, Event::Start(node));
                // The machine that is back knows nothing of old connections.
                for (link, end) in before {
                    self.agenda.after(wait, Event::Closed(link, 1 - end as u8));
                }
            }
        }
    }

    fn open_links(&self, node: u32) -> Vec<(u32, usize)> {
        let links = self.nodes[node as usize].links.iter();
        let ends = links.map(|&link| (link, self.end_of(link, node)));
        ends.filter(|(link, end)| self.links[*link as usize].open[*end]).collect()
    }

    fn set_disks(&mut self, nodes: &[u32], rate: Rate) {
        nodes.iter().for_each(|node| self.nodes[*node as usize].disk_bits = rate.0);
    }

    fn set_links(&mut self, nodes: &[u32], rate: Rate) {
        nodes.iter().for_each(|node| self.net.ports().set_node_rate(*node, rate));
    }

    /// Both ends find the connection broken, whatever is under way.
    fn reset(&mut self, count: u32, fault: u32) {
        let open: Vec<u32> =
            (0..self.links.len() as u32).filter(|link| self.links[*link as usize].open == [true; 2]).collect();
        for number in 0..u64::from(count).min(open.len() as u64) {
            let link = open[below(self.seed, fault, Stream::Reset, number, open.len() as u64) as usize];
            for end in 0..2 {
                if std::mem::replace(&mut self.links[link as usize].open[end], false) {
                    self.net.cut(link);
                    let (node, peer) = (self.links[link as usize].nodes[end], self.links[link as usize].peers[end]);
                    self.nodes[node as usize].forget_owed(peer);
                    self.arrive_at(node, Input::Gone(Peer(peer)));
                }
            }
        }
    }
}
