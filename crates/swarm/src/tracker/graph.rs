//! A graph that stays near a random regular one while nodes come and go.

use crate::chance::Chance;

/// Neighbours of every node, by the node's number; links go both ways.
#[derive(Debug, Default)]
pub(super) struct Graph {
    links: Vec<Vec<u32>>,
}

impl Graph {
    pub(super) fn of(&self, node: u32) -> &[u32] {
        self.links.get(node as usize).map_or(&[], Vec::as_slice)
    }

    /// Links two nodes, unless they are.
    pub(super) fn connect(&mut self, a: u32, b: u32) {
        if a == b || self.of(a).contains(&b) {
            return;
        }
        self.slot(a).push(b);
        self.slot(b).push(a);
    }

    /// Takes a node out with its links.
    pub(super) fn leave(&mut self, node: u32) {
        for other in std::mem::take(self.slot(node)) {
            self.slot(other).retain(|neighbour| *neighbour != node);
        }
    }

    /// Links `node` to `count` more nodes of `pool`: each time the one with
    /// the fewest links among `draws` drawn by chance. Chance keeps the graph
    /// short across, the comparison keeps it near regular. Fewer only where
    /// the pool has no more.
    pub(super) fn attach(&mut self, node: u32, pool: &[u32], count: usize, draws: usize, chance: &mut Chance) {
        for _ in 0..count {
            let mut best: Option<u32> = None;
            for _ in 0..draws {
                let drawn = pool[chance.index(pool.len())];
                let fewer = best.is_none_or(|best| self.of(drawn).len() < self.of(best).len());
                if fewer && drawn != node && !self.of(node).contains(&drawn) {
                    best = Some(drawn);
                }
            }
            // In a small pool all that were drawn may be linked already.
            let free = |other: &&u32| **other != node && !self.of(node).contains(other);
            let Some(best) =
                best.or_else(|| pool.iter().filter(free).min_by_key(|other| self.of(**other).len()).copied())
            else {
                return;
            };
            self.connect(node, best);
        }
    }

    fn slot(&mut self, node: u32) -> &mut Vec<u32> {
        let at = node as usize;
        if self.links.len() <= at {
            self.links.resize_with(at + 1, Vec::new);
        }
        &mut self.links[at]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn links_go_both_ways_and_end_with_their_node() {
        let mut graph = Graph::default();
        let mut chance = Chance::new(1, 1);
        for node in 1..50 {
            let pool: Vec<u32> = (0..node).collect();
            graph.attach(node, &pool, 5, 4, &mut chance);
        }
        graph.leave(7);
        for node in 0..50 {
            assert!(!graph.of(node).contains(&node) && !graph.of(node).contains(&7));
            assert!(graph.of(node).iter().all(|other| graph.of(*other).contains(&node)));
        }
        assert!(graph.of(7).is_empty());
    }
}
