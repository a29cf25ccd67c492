//! Prints the table of the simulation: how level placements are and how much changes move, each
//! line held to its bounds. Ends with 1 if one is broken.
//!
//! `cargo xtask placement [--json] [NODES...]`

use serde_json::{Value, json};
use sheepdog_placement::sim::{
    Disks, LOAD_MAX, MOVED_MAX, Moves, REPLICAS_MIN, ROUNDING, Row, Spread, Weights, Zones, run,
    scenarios,
};
use std::process::ExitCode;

/// Rounds of changes of clusters of so many nodes.
fn rounds(nodes: usize) -> u32 {
    if nodes < 1000 { 10 } else { 1 }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let as_json = words.iter().any(|w| w == "--json");
    let mut sizes = Vec::new();
    for word in words.iter().filter(|w| *w != "--json") {
        match word.parse() {
            Ok(nodes @ 4..=10_000) => sizes.push(nodes),
            _ => {
                eprintln!("Usage: cargo xtask placement [--json] [NODES...], 4 to 10000 each");
                return ExitCode::from(64);
            }
        }
    }
    if sizes.is_empty() {
        sizes = vec![10, 100, 1000];
    }
    if print(&sizes, as_json) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says whether all bounds hold.
fn print(sizes: &[usize], as_json: bool) -> bool {
    let (mut lines, mut broken) = (Vec::new(), 0);
    for nodes in sizes {
        if !as_json {
            header(*nodes);
        }
        for scenario in scenarios(*nodes, rounds(*nodes)) {
            let row = run(&scenario);
            broken += usize::from(!row.broken().is_empty());
            if as_json {
                lines.push(json_row(&row));
            } else {
                text_row(&row);
            }
        }
    }
    if as_json {
        let all = json!({
            "bounds": {
                "load_percent": LOAD_MAX,
                "from_replicas": REPLICAS_MIN,
                "moved_of_necessary": MOVED_MAX,
                "rounding_replicas": ROUNDING,
            },
            "broken": broken,
            "rows": lines,
        });
        println!("{all:#}");
    } else if broken == 0 {
        println!("\nAll bounds hold.");
    } else {
        println!("\n{broken} lines break a bound.");
    }
    broken == 0
}

fn header(nodes: usize) {
    println!("\n## {nodes} nodes, {} changes of each kind\n", rounds(nodes));
    println!(
        "| zones | weights | disks | copies | shards | fresh load | load after changes | join | leave | reweight | holds |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|");
}

fn text_row(row: &Row) {
    let broken = row.broken();
    let verdict = if broken.is_empty() { "yes".to_owned() } else { broken.join("; ") };
    println!(
        "| {} | {} | {} | {} | 2^{} | {} | {} | {} | {} | {} | {verdict} |",
        zones(row),
        weights(row),
        row.disks,
        row.scenario.copies,
        row.bits,
        spread(row.fresh),
        spread(row.after),
        moves(row.join),
        moves(row.leave),
        moves(row.reweight),
    );
}

fn zones(row: &Row) -> String {
    let kind = match row.scenario.shape.zones {
        Zones::Own => "one per node",
        Zones::Equal(_) => "equal",
        Zones::Halving(_) => "halving",
    };
    format!("{} {kind}", row.zones)
}

fn weights(row: &Row) -> &'static str {
    match row.scenario.shape.weights {
        Weights::Even => "even",
        Weights::Uneven => "uneven",
    }
}

fn spread(spread: Spread) -> String {
    format!("{:+.2} {:+.2} %", spread.above, spread.below)
}

fn moves(moves: Moves) -> String {
    format!("{:.3} (worst {:.3})", moves.ratio(), moves.worst)
}

fn json_row(row: &Row) -> Value {
    let spread = |s: Spread| json!({ "above_percent": s.above, "below_percent": s.below, "disks_looked_at": s.disks });
    let moves = |m: Moves| {
        json!({
            "moved": m.moved,
            "necessary": m.necessary,
            "ratio": m.ratio(),
            "worst_ratio": m.worst,
        })
    };
    json!({
        "nodes": row.scenario.nodes,
        "zones": row.zones,
        "zone_kind": zones(row).split_once(' ').map(|(_, kind)| kind.to_owned()),
        "weights": weights(row),
        "several_disks": row.scenario.shape.disks == Disks::Several,
        "disks": row.disks,
        "copies": row.scenario.copies,
        "shard_bits": row.bits,
        "changes_of_each_kind": row.scenario.rounds,
        "fresh": spread(row.fresh),
        "after_changes": spread(row.after),
        "join": moves(row.join),
        "leave": moves(row.leave),
        "reweight": moves(row.reweight),
        "zone_rule": row.zone_rule,
        "broken": row.broken(),
    })
}
