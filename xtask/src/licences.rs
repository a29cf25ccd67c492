//! Licences and bans of all dependencies, those of fuzzing included, from the lists of `deny.toml`,
//! for machines without cargo-deny (building it takes longer than all of our own tests).

use crate::shell::{cargo, output};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use sheepdog_testkit::bins::root;
use std::collections::BTreeSet;

/// Fails with one line for each dependency that may not be here.
pub fn run() -> Result<()> {
    let lists: toml::Table = std::fs::read_to_string(root().join("deny.toml"))?.parse()?;
    let allowed: BTreeSet<&str> = lists["licenses"]["allow"]
        .as_array()
        .context("deny.toml: licenses.allow is no list")?
        .iter()
        .filter_map(toml::Value::as_str)
        .collect();
    let banned: BTreeSet<&str> = lists["bans"]["deny"]
        .as_array()
        .context("deny.toml: bans.deny is no list")?
        .iter()
        .filter_map(|entry| entry.get("crate")?.as_str())
        .collect();
    let exceptions = lists["licenses"]["exceptions"]
        .as_array()
        .context("deny.toml: licenses.exceptions is no list")?;
    let (mut faults, mut count) = (BTreeSet::new(), 0);
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let words = ["metadata", "--format-version=1", "--locked", "--manifest-path", manifest];
        let metadata: Value = serde_json::from_str(&output(&mut cargo(&words))?)?;
        let packages = metadata["packages"].as_array().context("no packages")?;
        count += packages.len();
        for package in packages {
            let name = package["name"].as_str().unwrap_or_default();
            let licence = package["license"].as_str().unwrap_or_default();
            if banned.contains(name) {
                faults.insert(format!("{name} is banned"));
            }
            let mut allowed = allowed.clone();
            let exceptions = exceptions.iter().filter(|e| e["crate"].as_str() == Some(name));
            let also = exceptions.filter_map(|e| e["allow"].as_array()).flatten();
            allowed.extend(also.filter_map(toml::Value::as_str));
            if !satisfied(licence, &allowed) {
                faults.insert(format!("{name} is under {licence:?}"));
            }
        }
    }
    if !faults.is_empty() {
        let faults: Vec<String> = faults.into_iter().collect();
        bail!("deny.toml does not allow:\n  {}", faults.join("\n  "));
    }
    println!("    {count} packages, all allowed by deny.toml");
    Ok(())
}

/// Whether an SPDX expression can be satisfied with the allowed licences. `/` is the old way to
/// write OR.
fn satisfied(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    either(&mut rest, allowed) && rest.is_empty()
}

fn either(rest: &mut &[&str], allowed: &BTreeSet<&str>) -> bool {
    let mut result = both(rest, allowed);
    while let ["OR", tail @ ..] = rest {
        *rest = tail;
        result |= both(rest, allowed);
    }
    result
}

fn both(rest: &mut &[&str], allowed: &BTreeSet<&str>) -> bool {
    let mut result = single(rest, allowed);
    while let ["AND", tail @ ..] = rest {
        *rest = tail;
        result &= single(rest, allowed);
    }
    result
}

fn single(rest: &mut &[&str], allowed: &BTreeSet<&str>) -> bool {
    match *rest {
        ["(", tail @ ..] => {
            *rest = tail;
            let result = either(rest, allowed);
            if let [")", tail @ ..] = rest {
                *rest = tail;
                return result;
            }
            false
        }
        [licence, "WITH", exception, tail @ ..] => {
            *rest = tail;
            allowed.contains(licence)
                || allowed.contains(format!("{licence} WITH {exception}").as_str())
        }
        [licence, tail @ ..] => {
            *rest = tail;
            allowed.contains(licence)
        }
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_mean_what_spdx_says() {
        let allowed = BTreeSet::from(["MIT", "Apache-2.0"]);
        for (expression, verdict) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("GPL-3.0/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR GPL-3.0) AND Apache-2.0", true),
            ("MIT AND (GPL-3.0 OR LGPL-3.0)", false),
            ("GPL-3.0 OR MIT AND Apache-2.0", true),
            ("GPL-2.0 WITH GCC-exception", false),
            ("Apache-2.0 WITH LLVM-exception OR X", true),
            ("", false),
            ("(MIT", false),
        ] {
            assert_eq!(satisfied(expression, &allowed), verdict, "{expression}");
        }
    }
}
