//! What do writes cost, how much memory do very many entries take, and how soon is the server there again with them?

use anyhow::{Context, Result};

use crate::clock;
use crate::floors::disk;
use crate::numbers::{figure, median};
use crate::options::{Options, Sizes};
use crate::report::{Report, say};
use crate::row::{Measured, Row, Target};
use crate::rows::hold::mb;
use crate::site::{Make, PER_REQUEST, Places, Site, entry, node_name};

pub(crate) const COMMIT: Row = Row {
    key: "commit",
    what: "one entry created and acknowledged, one after the other",
    floor: "one write of as many bytes into a file of fixed size, and `fdatasync`",
    unit: "ms",
    target: Target::None,
};

pub(crate) const BULK: Row = Row {
    key: "bulk",
    what: "entries created a thousand in a request: time for each thousand",
    floor: "sled alone: a batch of a thousand records of the same size, flushed",
    unit: "ms",
    target: Target::Ratio(1.67),
};

pub(crate) const ENTRY_MEMORY: Row = Row {
    key: "entry-memory",
    what: "resident memory of a server that has just read very many entries, for each, beyond that of an empty one",
    floor: "the entry's record in the store",
    unit: "B",
    target: Target::AtMost(700.0),
};

pub(crate) const START: Row = Row {
    key: "server-start",
    what: "start of a server without entries, until it answers",
    floor: "",
    unit: "ms",
    target: Target::None,
};

pub(crate) const RECOVERY: Row = Row {
    key: "recovery",
    what: "start after kill -9 with very many entries, until it answers",
    floor: "sled alone: the same store opened, and every record read",
    unit: "ms",
    target: Target::Ratio(2.0),
};

pub(crate) const STOP_TIME: Row = Row {
    key: "server-stop",
    what: "stop of a server with very many entries, until its process is gone",
    floor: "",
    unit: "ms",
    target: Target::None,
};

/// Nodes that the entries belong to.
const NODES: usize = 10_000;
/// Points of the plot.
const STEPS: usize = 4;
const MEMORY_BY_ENTRIES: &str = "server memory by entries";
/// Bytes of an entry's record, where it is not measured.
const RECORD: usize = 480;

pub(super) async fn measure(
    options: &Options,
    sizes: Sizes,
    places: Places,
    report: &mut Report,
) -> Result<()> {
    let mut site = Site::new(places)?;
    let empty = site.start().await?;
    if options.wants(&[&START]) {
        report.took(&START, Measured::of(empty, None));
    }
    let base = site.usage()?.resident;
    let (bulk, worked) = filled(&site, sizes, report).await?;
    say(&format!(
        "{} entries registered; the server grew by {} MB",
        sizes.many,
        (site.usage()?.resident.saturating_sub(base)) / 1024
    ));
    let is_ours = site.make() == Make::Passant;
    let (mut starts, mut floors, mut memory, mut record) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
    if options.wants(&[&ENTRY_MEMORY, &RECOVERY, &BULK]) {
        for turn in 0..sizes.turns.min(3) {
            site.kill()?;
            if is_ours {
                let copy = site.on_disk(&format!("copy-{turn}"));
                disk::copy(&site.server_data().join("state"), &copy)?;
                let scanned = disk::scanned(&copy)?;
                std::fs::remove_dir_all(copy)?;
                anyhow::ensure!(scanned.records >= sizes.many, "{} records are too few", scanned.records);
                floors.push(scanned.took);
                record = scanned.each();
            }
            starts.push(site.start().await?);
            memory.push((mb(site.usage()?.resident) - mb(base)) * 1024.0 * 1024.0 / figure(sizes.many));
        }
    }
    let known = (record > 0.0).then_some(record);
    if options.wants(&[&ENTRY_MEMORY]) {
        let bytes = median(&memory).context("the server was started")?;
        report.took(&ENTRY_MEMORY, Measured::of(bytes, known).note("entries", figure(sizes.many)));
    }
    if options.wants(&[&RECOVERY]) {
        let took = median(&starts).context("the server was started")?;
        let measured = Measured::of(took, median(&floors)).note("entries", figure(sizes.many));
        report.took(&RECOVERY, measured.over(&starts));
    }
    if options.wants(&[&BULK]) {
        let count = sizes.many.min(100_000);
        let bytes = as_bytes(known);
        let floor =
            disk::bulk(&site.on_disk("."), count, bytes, PER_REQUEST)? * figure(PER_REQUEST) / figure(count);
        let measured = Measured::of(bulk, Some(floor)).note("us CPU an entry", worked);
        report.took(&BULK, measured.note("entries per second", figure(PER_REQUEST) / bulk * 1e3));
    }
    if options.wants(&[&COMMIT]) {
        let times = 20 * sizes.turns;
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for turn in 0..5 {
            floor.extend(disk::single(&site.on_disk("."), as_bytes(known), times)?);
            for number in 0..times {
                let number = sizes.many + turn * times + number;
                let one = std::iter::once(entry(number, &node_name(number % NODES)));
                ours.push(site.register(one).await?);
            }
        }
        let middle = median(&ours).context("entries were created")?;
        report.took(&COMMIT, Measured::of(middle, median(&floor)).over(&ours));
    }
    if options.wants(&[&STOP_TIME]) {
        let began = clock::now();
        site.stop().await?;
        report.took(&STOP_TIME, Measured::of(clock::now() - began, None));
    }
    Ok(())
}

/// Registers them; milliseconds for a thousand, and what the server worked for each, in microseconds.
async fn filled(site: &Site, sizes: Sizes, report: &mut Report) -> Result<(f64, f64)> {
    let memory = || -> Result<f64> { Ok(mb(site.usage()?.resident)) };
    report.point(MEMORY_BY_ENTRIES, 0.0, Some(memory()?), None);
    let used = site.usage()?.cpu;
    let mut took = 0.0;
    let part = sizes.many.div_ceil(STEPS);
    for from in (0..sizes.many).step_by(part) {
        let to = sizes.many.min(from + part);
        took += site.register((from..to).map(|number| entry(number, &node_name(number % NODES)))).await?;
        report.point(MEMORY_BY_ENTRIES, figure(to), Some(memory()?), None);
    }
    let worked = site.usage()?.cpu.saturating_sub(used).as_secs_f64() * 1e6 / figure(sizes.many);
    Ok((took * figure(PER_REQUEST) / figure(sizes.many), worked))
}

fn as_bytes(record: Option<f64>) -> usize {
    record.and_then(|bytes| format!("{bytes:.0}").parse().ok()).unwrap_or(RECORD)
}
