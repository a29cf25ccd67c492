//! Running fio once and reading its numbers.

use super::Load;
use super::contender::{Contender, Target};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sheepdog_testkit::process::run;
use sheepdog_testkit::tools::command;
use std::process::Command;

/// One run of one load against one contender.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Requests a second.
    pub iops: f64,
    /// MiB a second.
    pub mib: f64,
    /// Median latency in microseconds.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Requests in all.
    pub requests: u64,
    /// Device flushes meanwhile.
    pub flushes: u64,
}

impl Sample {
    /// Above the lines.
    pub const HEADER: &str = "who             IOPS    MiB/s   p50 us   p99 us  flushes/request";

    /// For people.
    pub fn line(&self, who: &str) -> String {
        format!(
            "{who:<12}{:>8.0} {:>8.1} {:>8.1} {:>8.1} {:>16.3}",
            self.iops,
            self.mib,
            self.p50,
            self.p99,
            self.flushes_per_request()
        )
    }

    /// Device flushes for each request.
    pub fn flushes_per_request(&self) -> f64 {
        self.flushes as f64 / self.requests.max(1) as f64
    }

    /// For the record.
    pub fn json(&self) -> Value {
        let round = |x: f64| (x * 10.0).round() / 10.0;
        json!({
            "iops": self.iops.round(),
            "mib_s": round(self.mib),
            "p50_us": round(self.p50),
            "p99_us": round(self.p99),
            "requests": self.requests,
            "flushes": self.flushes,
        })
    }
}

/// Writes the whole disk once, with bytes that do not compress.
pub fn fill(contender: &Contender, bytes: u64) -> Result<()> {
    let load = super::load("fill", "write", "1M", 8);
    let mut fio = job(contender, &load, bytes);
    fio.arg("--refill_buffers");
    report_of(&mut fio).with_context(|| format!("fill {}", contender.name))?;
    Ok(())
}

/// Runs a load for some seconds.
pub fn measure(
    contender: &Contender,
    load: &Load,
    bytes: u64,
    seconds: u32,
    round: u32,
) -> Result<Sample> {
    let mut fio = job(contender, load, bytes);
    fio.arg("--time_based")
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--randseed={}", 1000 + round))
        .args(["--lat_percentiles=1", "--clat_percentiles=0"]);
    let report =
        report_of(&mut fio).with_context(|| format!("{}: {}", contender.name, load.name))?;
    let part = &report["jobs"][0][if load.writes() { "write" } else { "read" }];
    let number = |value: &Value| value.as_f64().context("a number is missing in fio's report");
    let percentile =
        |p: &str| Ok::<_, anyhow::Error>(number(&part["lat_ns"]["percentile"][p])? / 1e3);
    Ok(Sample {
        iops: number(&part["iops"])?,
        mib: number(&part["bw_bytes"])? / f64::from(1 << 20),
        p50: percentile("50.000000")?,
        p99: percentile("99.000000")?,
        requests: part["total_ios"].as_u64().unwrap_or(0),
        flushes: 0,
    })
}

fn job(contender: &Contender, load: &Load, bytes: u64) -> Command {
    let mut fio = command("fio");
    fio.args(["--name=bench", "--output-format=json", "--norandommap"])
        .arg(format!("--rw={}", load.rw))
        .arg(format!("--bs={}", load.block))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--size={bytes}"));
    match &contender.target {
        Target::File(file) => {
            // The fastest way to a file that there is here; where io_uring is refused, the next.
            let engine = if has_io_uring() { "io_uring" } else { "libaio" };
            fio.arg(format!("--ioengine={engine}"))
                .arg("--direct=1")
                .arg(format!("--filename={}", file.display()));
            if load.writes() {
                fio.arg("--sync=dsync");
            }
        }
        Target::Uri(uri) => {
            fio.arg("--ioengine=nbd").arg(format!("--uri={uri}"));
        }
    }
    fio
}

fn has_io_uring() -> bool {
    let off = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    off.is_ok_and(|value| value.trim() == "0")
}

fn report_of(fio: &mut Command) -> Result<Value> {
    let ended = run(fio, b"");
    if ended.code != 0 {
        bail!("fio: {}\n{}", ended.stderr, ended.text());
    }
    let text = ended.text();
    let json = text.find('{').map_or("", |at| &text[at..]);
    Ok(serde_json::from_str(json)?)
}
