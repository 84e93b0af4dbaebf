//! What is counted and timed, and how is it told to Prometheus?
//!
//! A daemon has one struct of all its metrics, which it hands down; whoever has it adds to it without a lock and without
//! a look at the names. Metrics that nobody registered work too: tests need no registry. Values that stand somewhere
//! already are not counted twice, but read at each scrape, by [`Registry::watch`].
//!
//! Base units are seconds and bytes, and the names say so.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{
    EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::metrics::{counter, gauge, histogram};
use tokio::time::Instant;

use crate::label::Labels;

/// The media type of `Registry::encode`.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the buckets of [`Seconds`]: from a hit in memory to the longest that anybody waits.
const SECONDS: [f64; 18] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0,
];

/// Upper bounds of the buckets of [`Sizes`].
const SIZES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// How often something happened.
#[derive(Clone, Debug, Default)]
pub struct Counter(counter::Counter);

/// How many there are right now.
#[derive(Clone, Debug, Default)]
pub struct Gauge(gauge::Gauge<i64>);

/// How long something took.
#[derive(Clone, Debug)]
pub struct Seconds(histogram::Histogram);

/// How many things came together.
#[derive(Clone, Debug)]
pub struct Sizes(histogram::Histogram);

/// One metric for each value of a label, or for each pair of values. All are there from the beginning, at zero.
#[derive(Debug)]
pub struct Family<L, M> {
    of: Arc<[(L, M)]>,
}

/// One more of a [`Gauge`], until dropped.
#[derive(Debug)]
pub struct Held(Gauge);

/// All that a daemon tells Prometheus.
#[derive(Debug)]
pub struct Registry {
    registry: prometheus_client::registry::Registry,
}

impl Counter {
    /// Once more.
    pub fn inc(&self) {
        self.0.inc();
    }

    /// `more` times more.
    pub fn add(&self, more: usize) {
        self.0.inc_by(u64::try_from(more).unwrap_or(u64::MAX));
    }

    /// How often so far.
    pub fn count(&self) -> u64 {
        self.0.get()
    }
}

impl Gauge {
    /// One more, until the guard is dropped.
    #[must_use]
    pub fn hold(&self) -> Held {
        self.0.inc();
        Held(self.clone())
    }

    /// How many now.
    pub fn value(&self) -> i64 {
        self.0.get()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.dec();
    }
}

impl Seconds {
    /// It took `span`.
    pub fn observe(&self, span: Duration) {
        self.0.observe(span.as_secs_f64());
    }

    /// It took from `began` till now.
    pub fn since(&self, began: Instant) {
        self.observe(began.elapsed());
    }
}

impl Default for Seconds {
    fn default() -> Self {
        Self(histogram::Histogram::new(SECONDS))
    }
}

impl Sizes {
    /// So many came together.
    pub fn observe(&self, size: usize) {
        // Exact below 2^32, and more never come together.
        self.0.observe(f64::from(u32::try_from(size).unwrap_or(u32::MAX)));
    }
}

impl Default for Sizes {
    fn default() -> Self {
        Self(histogram::Histogram::new(SIZES))
    }
}

impl<L: Labels, M> Family<L, M> {
    /// The metric for `labels`.
    pub fn of(&self, labels: L) -> &M {
        // There is one for each index: see `Labels::all`.
        &self.of[labels.index()].1
    }
}

impl<L: Labels, M: Default> Default for Family<L, M> {
    fn default() -> Self {
        Self { of: L::all().into_iter().map(|labels| (labels, M::default())).collect() }
    }
}

impl<L, M> Clone for Family<L, M> {
    fn clone(&self) -> Self {
        Self { of: Arc::clone(&self.of) }
    }
}

impl Registry {
    /// An empty one; names will begin with `prefix` and an underscore.
    pub fn new(prefix: &str) -> Self {
        Self { registry: prometheus_client::registry::Registry::with_prefix(prefix) }
    }

    /// An empty one, whose names are as given.
    pub fn without_prefix() -> Self {
        Self { registry: prometheus_client::registry::Registry::default() }
    }

    /// Tells a metric under `name`. `help` is a sentence without its full stop. Counters get `_total` at the end.
    pub fn register<M: Metric>(&mut self, name: &str, help: &str, metric: &M) {
        self.registry.register(name, help, Told(metric.clone()));
    }

    /// Tells, at each scrape, what `read` finds for each value of the label; nothing where that is `None`.
    pub fn watch<L: Labels>(
        &mut self,
        name: &str,
        help: &str,
        read: impl Fn(L) -> Option<f64> + Send + Sync + 'static,
    ) {
        self.registry.register(name, help, Watched { read, of: L::all(), grows: false });
    }

    /// As [`Registry::watch`], for what only ever grows.
    pub fn watch_counter(
        &mut self,
        name: &str,
        help: &str,
        read: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        let read = move |()| read();
        self.registry.register(name, help, Watched { read, of: vec![()], grows: true });
    }

    /// Tells which version this is.
    pub fn build(&mut self, version: &'static str) {
        let info = prometheus_client::metrics::info::Info::new(vec![("version", version)]);
        self.registry.register("build", "The version that runs", info);
    }

    /// Everything in the text format of OpenMetrics, without the mark of its end: see [`encode`].
    fn encode_into(&self, text: &mut String) -> fmt::Result {
        prometheus_client::encoding::text::encode_registry(text, &self.registry)
    }
}

/// All of `registries` in the text format of OpenMetrics, of media type [`MEDIA_TYPE`].
///
/// # Errors
/// None that is known: writing to memory succeeds.
pub fn encode<'a>(registries: impl IntoIterator<Item = &'a Registry>) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for registry in registries {
        registry.encode_into(&mut text)?;
    }
    prometheus_client::encoding::text::encode_eof(&mut text)?;
    Ok(text)
}

/// What can be registered: [`Counter`], [`Gauge`], [`Seconds`], [`Sizes`], and [`Family`] of them.
pub trait Metric: Clone + fmt::Debug + Send + Sync + 'static {
    /// What Prometheus calls it.
    const KIND: MetricType;

    /// Writes the present value.
    ///
    /// # Errors
    /// Those of the encoder.
    fn tell(&self, encoder: MetricEncoder<'_>) -> fmt::Result;
}

impl Metric for Counter {
    const KIND: MetricType = MetricType::Counter;

    fn tell(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

impl Metric for Gauge {
    const KIND: MetricType = MetricType::Gauge;

    fn tell(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

impl Metric for Seconds {
    const KIND: MetricType = histogram::Histogram::TYPE;

    fn tell(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

impl Metric for Sizes {
    const KIND: MetricType = histogram::Histogram::TYPE;

    fn tell(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

impl<L: Labels, M: Metric> Metric for Family<L, M> {
    const KIND: MetricType = M::KIND;

    fn tell(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, metric) in self.of.iter() {
            metric.tell(encoder.encode_family(&Pairs(labels.pairs()))?)?;
        }
        Ok(())
    }
}

/// Our metrics, as the encoder wants them.
#[derive(Debug)]
struct Told<M>(M);

impl<M: Metric> EncodeMetric for Told<M> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.tell(encoder)
    }

    fn metric_type(&self) -> MetricType {
        M::KIND
    }
}

/// What is read at each scrape.
struct Watched<L, F> {
    read: F,
    of: Vec<L>,
    /// Whether it is a counter, not a gauge.
    grows: bool,
}

impl<L: Labels, F: Fn(L) -> Option<f64>> EncodeMetric for Watched<L, F> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for labels in &self.of {
            let Some(value) = (self.read)(*labels) else { continue };
            let pairs = Pairs(labels.pairs());
            if pairs.0.is_empty() {
                self.tell(&mut encoder, value)?;
            } else {
                self.tell(&mut encoder.encode_family(&pairs)?, value)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        if self.grows { MetricType::Counter } else { MetricType::Gauge }
    }
}

impl<L, F> Watched<L, F> {
    fn tell(&self, encoder: &mut MetricEncoder<'_>, value: f64) -> fmt::Result {
        if self.grows {
            encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
        } else {
            encoder.encode_gauge(&value)
        }
    }
}

impl<L: fmt::Debug, F> fmt::Debug for Watched<L, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("of", &self.of).finish_non_exhaustive()
    }
}

struct Pairs(Vec<(&'static str, &'static str)>);

impl EncodeLabelSet for Pairs {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::labels! {
        /// A colour.
        enum Colour: "colour" {
            /// Or.
            Gold = "gold",
            /// Argent.
            Silver = "silver",
        }
    }

    #[test]
    fn every_series_is_told_from_the_beginning() {
        let struck: Family<Colour, Counter> = Family::default();
        let held = Gauge::default();
        let took = Seconds::default();
        let mut registry = Registry::new("office");
        registry.register("struck", "Pieces struck", &struck);
        registry.register("held", "Pieces held", &held);
        registry.register("took_seconds", "How long a piece took", &took);
        registry.watch("weight", "Weight of a piece", |colour| match colour {
            Colour::Gold => Some(19.3),
            Colour::Silver => None,
        });
        registry.build("1.2.3");
        struck.of(Colour::Silver).add(2);
        let guard = held.hold();
        took.observe(Duration::from_millis(3));
        let text = encode([&registry]).unwrap();
        for line in [
            "# HELP office_struck Pieces struck.",
            "# TYPE office_struck counter",
            "office_struck_total{colour=\"gold\"} 0",
            "office_struck_total{colour=\"silver\"} 2",
            "office_held 1",
            "# TYPE office_took_seconds histogram",
            "office_took_seconds_bucket{le=\"0.0025\"} 0",
            "office_took_seconds_bucket{le=\"0.005\"} 1",
            "office_took_seconds_count 1",
            "office_weight{colour=\"gold\"} 19.3",
            "office_build_info{version=\"1.2.3\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("office_weight{colour=\"silver\"}"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        drop(guard);
        assert_eq!(held.value(), 0);
    }
}
