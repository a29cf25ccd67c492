//! The least number of replicas that must be copied to bring every disk within its bounds, with one
//! replica per zone: a minimum-cost flow from shards over their zones to disks, in a form that is
//! small enough for clusters of a thousand disks.

use std::collections::VecDeque;

/// Fewest copies. `zones` and `bounds` are by disk, `sets` by shard (disks that hold a replica, no
/// two of one zone). None if it cannot be done at all.
#[must_use]
pub fn fewest(
    zones: &[usize],
    bounds: &[(u32, u32)],
    sets: &[Vec<usize>],
    width: u32,
) -> Option<u64> {
    /// Paid for each replica that a disk gets beyond its lower bound: more than any chain of moves
    /// costs, so that lower bounds are met first.
    const BEYOND: i32 = 1000;
    let zone_count = zones.iter().max().map_or(0, |z| z + 1);
    let kept: usize = sets.iter().map(Vec::len).sum();
    let pool_at = 2;
    let disk_at = pool_at + zone_count;
    let shard_at = disk_at + zones.len();
    let place_at = shard_at + sets.len();
    let mut graph = Graph::new(place_at + kept);
    let (source, sink) = (0, 1);
    let mut place = place_at;
    for (s, set) in sets.iter().enumerate() {
        let shard = shard_at + s;
        graph.edge(source, shard, width, 0);
        let mut held = vec![false; zone_count];
        for d in set {
            // What is there stays for nothing, or its zone's replica goes to another disk.
            held[zones[*d]] = true;
            graph.edge(shard, place, 1, 0);
            graph.edge(place, disk_at + d, 1, 0);
            graph.edge(place, pool_at + zones[*d], 1, 1);
            place += 1;
        }
        for z in (0..zone_count).filter(|z| !held[*z]) {
            graph.edge(shard, pool_at + z, 1, 1);
        }
    }
    for (d, ((low, high), zone)) in bounds.iter().zip(zones).enumerate() {
        graph.edge(pool_at + zone, disk_at + d, *high, 0);
        graph.edge(disk_at + d, sink, *low, 0);
        graph.edge(disk_at + d, sink, high - low, BEYOND);
    }
    let (flow, cost) = graph.cheapest(source, sink);
    let all = u64::from(width) * sets.len() as u64;
    let low: u64 = bounds.iter().map(|(low, _)| u64::from(*low)).sum();
    let moves = cost.checked_sub(all.checked_sub(low)? * BEYOND as u64)?;
    (flow == all && moves <= all).then_some(moves)
}

const NO_EDGE: u32 = u32::MAX;

struct Edge {
    to: u32,
    /// The next edge from the same node.
    next: u32,
    room: u32,
    cost: i32,
}

/// Edges lie in pairs, there and back.
struct Graph {
    edges: Vec<Edge>,
    first: Vec<u32>,
    /// Potentials: no edge with room is cheaper than the fall along it.
    height: Vec<i32>,
}

impl Graph {
    fn new(nodes: usize) -> Self {
        Self { edges: Vec::new(), first: vec![NO_EDGE; nodes], height: vec![0; nodes] }
    }

    fn edge(&mut self, from: usize, to: usize, room: u32, cost: i32) {
        for (from, to, room, cost) in [(from, to, room, cost), (to, from, 0, -cost)] {
            let next = std::mem::replace(&mut self.first[from], self.edges.len() as u32);
            self.edges.push(Edge { to: to as u32, next, room, cost });
        }
    }

    /// The edges from a node that have room, with what each costs beyond the fall.
    fn open(&self, from: usize) -> impl Iterator<Item = (u32, usize, i32)> {
        let mut at = self.first[from];
        std::iter::from_fn(move || {
            while at != NO_EDGE {
                let (here, edge) = (at, &self.edges[at as usize]);
                at = edge.next;
                if edge.room > 0 {
                    let to = edge.to as usize;
                    return Some((here, to, edge.cost + self.height[from] - self.height[to]));
                }
            }
            None
        })
    }

    /// Largest flow of least cost: all cheapest paths at once, again and again.
    fn cheapest(&mut self, source: usize, sink: usize) -> (u64, u64) {
        let (mut flow, mut total) = (0u64, 0u64);
        while self.raise(source, sink) {
            loop {
                let level = self.levels(source, sink);
                let pushed = self.push_all(source, sink, &level);
                if pushed == 0 {
                    break;
                }
                flow += pushed;
                let price = self.height[sink] - self.height[source];
                total += pushed * u64::from(price.unsigned_abs());
            }
        }
        (flow, total)
    }

    /// Adds the distances from the source to the heights. False if the sink cannot be reached.
    fn raise(&mut self, source: usize, sink: usize) -> bool {
        let mut distance = vec![i32::MAX; self.first.len()];
        // Distances are small: one list of nodes for each.
        let mut lists: Vec<Vec<u32>> = vec![vec![source as u32]];
        distance[source] = 0;
        let mut at = 0;
        while at < lists.len() {
            while let Some(from) = lists[at].pop() {
                let from = from as usize;
                if distance[from] as usize != at {
                    continue;
                }
                for (_, to, cost) in self.open(from) {
                    let far = distance[from] + cost;
                    if far < distance[to] {
                        distance[to] = far;
                        if lists.len() <= far as usize {
                            lists.resize_with(far as usize + 1, Vec::new);
                        }
                        lists[far as usize].push(to as u32);
                    }
                }
            }
            at += 1;
        }
        let end = distance[sink];
        if end == i32::MAX {
            return false;
        }
        for (height, distance) in self.height.iter_mut().zip(&distance) {
            *height += (*distance).min(end);
        }
        true
    }

    /// How many edges that cost nothing more lead to each node.
    fn levels(&self, source: usize, sink: usize) -> Vec<u32> {
        let mut level = vec![u32::MAX; self.first.len()];
        level[source] = 0;
        let mut queue = VecDeque::from([source]);
        while let Some(from) = queue.pop_front() {
            if level[sink] != u32::MAX {
                break;
            }
            for (_, to, cost) in self.open(from) {
                if cost == 0 && level[to] == u32::MAX {
                    level[to] = level[from] + 1;
                    queue.push_back(to);
                }
            }
        }
        level
    }

    /// Fills all shortest paths that cost nothing more.
    fn push_all(&mut self, source: usize, sink: usize, level: &[u32]) -> u64 {
        let mut current = self.first.clone();
        let mut path: Vec<u32> = Vec::new();
        let mut pushed = 0;
        loop {
            let from = path.last().map_or(source, |e| self.edges[*e as usize].to as usize);
            if from == sink {
                let room = path.iter().map(|e| self.edges[*e as usize].room).min().unwrap_or(0);
                for e in &path {
                    self.edges[*e as usize].room -= room;
                    self.edges[*e as usize ^ 1].room += room;
                }
                pushed += u64::from(room);
                // Back to before the first edge that is full now.
                let full = path.iter().position(|e| self.edges[*e as usize].room == 0);
                path.truncate(full.unwrap_or(0));
                continue;
            }
            let mut at = current[from];
            while at != NO_EDGE {
                let edge = &self.edges[at as usize];
                let to = edge.to as usize;
                let flat = edge.cost + self.height[from] - self.height[to] == 0;
                if edge.room > 0 && flat && level[to] == level[from].wrapping_add(1) {
                    break;
                }
                at = edge.next;
            }
            current[from] = at;
            if at != NO_EDGE {
                path.push(at);
            } else if let Some(last) = path.pop() {
                // Nothing leads on: not this way again.
                let before = self.edges[last as usize ^ 1].to as usize;
                current[before] = self.edges[last as usize].next;
            } else {
                return pushed;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_obvious_cases() {
        // Two disks of one zone, four shards: level by moving one.
        let sets: Vec<Vec<usize>> = vec![vec![0], vec![0], vec![0], vec![1]];
        assert_eq!(fewest(&[0, 0], &[(2, 2), (2, 2)], &sets, 1), Some(1));
        assert_eq!(fewest(&[0, 0], &[(1, 3), (1, 3)], &sets, 1), Some(0));
        // Two copies in two zones: no disk can have fewer than all.
        let sets = vec![vec![0, 1], vec![0, 1]];
        assert_eq!(fewest(&[0, 1], &[(2, 2), (2, 2)], &sets, 2), Some(0));
        assert_eq!(fewest(&[0, 1], &[(1, 1), (2, 3)], &sets, 2), None);
        // Disk 3 needs one, disk 0 has one too many, but their only common shard is there already.
        let sets = vec![vec![0, 3], vec![0, 3], vec![1, 2]];
        let bounds = [(1, 1), (1, 1), (1, 1), (3, 3)];
        assert_eq!(fewest(&[0, 1, 2, 3], &bounds, &sets, 2), Some(2));
    }
}
