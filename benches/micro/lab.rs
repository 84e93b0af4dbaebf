//! How is a row measured? Floor and ours in turns, so that what disturbs one disturbs the other.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use criterion::{BenchmarkId, Criterion, SamplingMode};
use serde::Deserialize;

use crate::place::Place;
use crate::row::{Measured, Row, Turn};
use crate::table;

/// Turns of each row, and samples of each side in a turn. Ten samples are the fewest that criterion takes.
const TURNS: usize = 7;
const SAMPLES: usize = 12;
/// Turns of a row whose every value takes seconds.
const SLOW_TURNS: usize = 3;
/// How long the samples of one side take together in a turn, if one of them is not longer than its part.
const SIDE: Duration = Duration::from_millis(500);
const WARM_UP: Duration = Duration::from_millis(100);
/// The same for a run that only shows that everything works.
const QUICK_TURNS: usize = 2;
const QUICK_SIDE: Duration = Duration::from_millis(60);

/// The sides of a row.
const FLOOR: &str = "floor";
const OURS: &str = "ours";

/// Where rows are measured, and what they have brought so far.
pub(crate) struct Lab {
    wanted: Vec<String>,
    quick: bool,
    /// How many entries there are where a row is about many.
    pub(crate) entries: usize,
    /// For files of this run.
    pub(crate) place: Place,
    criterion: Criterion,
    samples: PathBuf,
    measured: BTreeMap<&'static str, Measured>,
}

impl Lab {
    /// Measures the rows whose keys hold one of `wanted`, all of them if it is empty.
    pub(crate) fn new(wanted: Vec<String>, quick: bool, entries: usize) -> Result<Self> {
        let place = Place::new()?;
        let samples = place.dir("criterion")?;
        let criterion = Criterion::default()
            .without_plots()
            .output_directory(&samples)
            // The resampling that it does for its own report.
            .nresamples(1_001)
            .sample_size(if quick { 10 } else { SAMPLES })
            .measurement_time(if quick { QUICK_SIDE } else { SIDE })
            .warm_up_time(WARM_UP);
        Ok(Self { wanted, quick, entries, place, criterion, samples, measured: BTreeMap::new() })
    }

    /// Whether `row` is to be measured.
    pub(crate) fn wants(&self, row: &Row) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|part| row.key.contains(part.as_str()))
    }

    /// Measures `row`. Both sides are told how many times to do it, and answer how long that took in the row's unit.
    pub(crate) fn turns(
        &mut self,
        row: &'static Row,
        mut floor: impl FnMut(u64) -> Duration,
        mut ours: impl FnMut(u64) -> Duration,
    ) -> Result<()> {
        if !self.wants(row) {
            return Ok(());
        }
        let mut group = self.criterion.benchmark_group(row.key);
        // As many times for each sample, so that the median of samples is a fair one.
        group.sampling_mode(SamplingMode::Flat);
        let count = if self.quick { QUICK_TURNS } else { TURNS };
        for turn in 0..count {
            group.bench_function(BenchmarkId::new(FLOOR, turn), |bencher| bencher.iter_custom(&mut floor));
            group.bench_function(BenchmarkId::new(OURS, turn), |bencher| bencher.iter_custom(&mut ours));
        }
        group.finish();
        let values = |side: &str, turn: usize| self.values(row, side, turn);
        let turns =
            (0..count).map(|turn| Ok(Turn { floor: values(FLOOR, turn)?, ours: values(OURS, turn)? }));
        let turns = turns.collect::<Result<_>>()?;
        self.measured.insert(row.key, Measured { turns });
        Ok(())
    }

    /// What criterion has sampled of one side in one turn: the values for doing it once.
    fn values(&self, row: &Row, side: &str, turn: usize) -> Result<Vec<f64>> {
        let file = self.samples.join(row.key).join(side).join(turn.to_string()).join("new/sample.json");
        let text =
            fs::read(&file).with_context(|| format!("criterion has not written {}", file.display()))?;
        let sample: Sample = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not as criterion writes it", file.display()))?;
        ensure!(sample.iters.len() == sample.times.len(), "{} is not whole", file.display());
        Ok(sample.iters.iter().zip(&sample.times).map(|(iters, time)| time / iters).collect())
    }

    /// Measures `row`, whose every value takes seconds, a few times.
    pub(crate) fn slow_turns(
        &mut self,
        row: &'static Row,
        mut turn: impl FnMut() -> Result<Turn>,
    ) -> Result<()> {
        if self.wants(row) {
            let turns = (0..if self.quick { 1 } else { SLOW_TURNS }).map(|_| turn());
            self.measured.insert(row.key, Measured { turns: turns.collect::<Result<_>>()? });
        }
        Ok(())
    }

    /// Takes values that came with those of another row.
    pub(crate) fn note(&mut self, row: &'static Row, turns: Vec<Turn>) {
        if self.wants(row) {
            self.measured.insert(row.key, Measured { turns });
        }
    }

    /// Prints the table of `rows`, and writes it to `file`.
    pub(crate) fn tell(self, rows: &[&Row], file: Option<&Path>) -> Result<()> {
        let measured = |row: &Row| self.measured.get(row.key);
        write!(std::io::stdout().lock(), "\n{}", table::for_a_person(rows, measured))?;
        if let Some(file) = file {
            fs::write(file, table::in_markdown(rows, measured))
                .with_context(|| format!("failed to write {}", file.display()))?;
        }
        Ok(())
    }
}

/// What criterion keeps of the samples.
#[derive(Deserialize)]
struct Sample {
    iters: Vec<f64>,
    times: Vec<f64>,
}
