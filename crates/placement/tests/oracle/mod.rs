//! Slow and obvious answers to what placement answers fast.
#![allow(dead_code)]

use std::collections::VecDeque;

/// Fewest replicas that must be copied to bring every disk within its bounds, with one replica per
/// zone, from where they are now: a minimum-cost flow from shards over their zones to disks.
///
/// `zones` and `bounds` are by disk, `sets` by shard (disks that hold a replica). None if it cannot
/// be done at all.
pub fn necessary(
    zones: &[usize],
    bounds: &[(u32, u32)],
    sets: &[Vec<usize>],
    width: u32,
) -> Option<u64> {
    let zone_count = zones.iter().max().map_or(0, |z| z + 1);
    let (shards, disks) = (sets.len(), zones.len());
    let mut graph = Graph::new(2 + shards + shards * zone_count + disks);
    let (source, sink) = (0, 1);
    let shard_at = |s| 2 + s;
    let zone_at = |s, z| 2 + shards + s * zone_count + z;
    let disk_at = |d| 2 + shards + shards * zone_count + d;
    for (s, set) in sets.iter().enumerate() {
        graph.edge(source, shard_at(s), i64::from(width), 0);
        for z in 0..zone_count {
            graph.edge(shard_at(s), zone_at(s, z), 1, 0);
        }
        for (d, z) in zones.iter().enumerate() {
            let cost = i64::from(!set.contains(&d));
            graph.edge(zone_at(s, *z), disk_at(d), 1, cost);
        }
    }
    // The lower bound is paid for: each unit of it earns more than any chain of moves costs.
    let reward = 1_000;
    for (d, (low, high)) in bounds.iter().enumerate() {
        graph.edge(disk_at(d), sink, i64::from(*low), -reward);
        graph.edge(disk_at(d), sink, i64::from(high - low), 0);
    }
    let (flow, cost) = graph.cheapest(source, sink);
    let low: i64 = bounds.iter().map(|(low, _)| i64::from(*low)).sum();
    let moves = cost + reward * low;
    (flow == i64::from(width) * shards as i64 && moves < reward).then_some(moves as u64)
}

struct Edge {
    to: usize,
    room: i64,
    cost: i64,
}

struct Graph {
    edges: Vec<Edge>,
    out: Vec<Vec<usize>>,
}

impl Graph {
    fn new(nodes: usize) -> Self {
        Self { edges: Vec::new(), out: vec![Vec::new(); nodes] }
    }

    fn edge(&mut self, from: usize, to: usize, room: i64, cost: i64) {
        self.out[from].push(self.edges.len());
        self.edges.push(Edge { to, room, cost });
        self.out[to].push(self.edges.len());
        self.edges.push(Edge { to: from, room: 0, cost: -cost });
    }

    /// Largest flow of least cost, by cheapest paths one after the other.
    fn cheapest(&mut self, source: usize, sink: usize) -> (i64, i64) {
        let (mut flow, mut total) = (0, 0);
        loop {
            let mut cost = vec![i64::MAX; self.out.len()];
            let mut via = vec![usize::MAX; self.out.len()];
            let mut waiting = vec![false; self.out.len()];
            let mut queue = VecDeque::from([source]);
            cost[source] = 0;
            while let Some(at) = queue.pop_front() {
                waiting[at] = false;
                for e in &self.out[at] {
                    let edge = &self.edges[*e];
                    if edge.room > 0 && cost[at] + edge.cost < cost[edge.to] {
                        cost[edge.to] = cost[at] + edge.cost;
                        via[edge.to] = *e;
                        if !std::mem::replace(&mut waiting[edge.to], true) {
                            queue.push_back(edge.to);
                        }
                    }
                }
            }
            if cost[sink] == i64::MAX {
                return (flow, total);
            }
            let mut at = sink;
            while at != source {
                self.edges[via[at]].room -= 1;
                self.edges[via[at] ^ 1].room += 1;
                at = self.edges[via[at] ^ 1].to;
            }
            flow += 1;
            total += cost[sink];
        }
    }
}
