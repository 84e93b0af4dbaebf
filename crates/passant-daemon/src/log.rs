//! What is logged, in which form, and how is the level changed while a daemon runs?
//!
//! The log goes to standard error, one event a line. There is one log in a process, so its control is one too.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// What the configuration says of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A tracing filter: `info`, or `info,passant_server::issue=debug`.
    pub level: String,
    /// The form of a line.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object each.
    Json,
}

/// A level for everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What needs somebody to act.
    Error,
    /// What may need somebody to act.
    Warn,
    /// What happens now and then.
    Info,
    /// What happens for each request.
    Debug,
    /// What happens within a request.
    Trace,
}

/// Why a text cannot be the level of a [`Log`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a log level")]
pub struct LevelError(String);

/// Why the log does not do as it is told.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a filter.
    #[error("{level}; {remedy}", level = .0, remedy = LevelError::REMEDY)]
    Level(#[from] LevelError),
    /// The log of this process belongs to somebody else.
    #[error("the log of this process is set up elsewhere")]
    Taken,
}

/// The log of this process.
#[derive(Debug)]
pub struct Control {
    handle: reload::Handle<EnvFilter, Registry>,
    filters: Mutex<Filters>,
}

#[derive(Debug)]
struct Filters {
    /// What the configuration says.
    configured: String,
    /// What holds now.
    current: String,
}

static CONTROL: OnceLock<Control> = OnceLock::new();

/// Sets up the log of this process as `log` says.
///
/// # Errors
/// [`LogError::Level`], and [`LogError::Taken`] when there is a log already.
pub fn init(log: &Log) -> Result<&'static Control, LogError> {
    let (filter, handle) = reload::Layer::new(parse(&log.level)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let set = match log.format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    set.map_err(|_| LogError::Taken)?;
    let filters = Filters { configured: log.level.clone(), current: log.level.clone() };
    Ok(CONTROL.get_or_init(|| Control { handle, filters: Mutex::new(filters) }))
}

/// The log of this process, if [`init`] has set it up.
pub fn control() -> Option<&'static Control> {
    CONTROL.get()
}

/// The level of a [`Log`] by what the configuration says; `info` when it says nothing.
///
/// # Errors
/// When that is not a filter.
pub fn level(given: Option<String>) -> Result<String, LevelError> {
    let level = given.unwrap_or_else(|| "info".to_owned());
    parse(&level)?;
    Ok(level)
}

fn parse(text: &str) -> Result<EnvFilter, LevelError> {
    let wrong = || LevelError(text.to_owned());
    // EnvFilter trims each part, and then cuts it as if it had not: with a space of several bytes within a character.
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    // A lone word that is no level would be taken for a module of which everything is logged. In braces stand regular
    // expressions, some of which take minutes to compile.
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let is_meant = |part: &&str| is_level(part) || (part.contains(['=', '[']) && !part.contains(['{', '}']));
    if !parts.iter().all(is_meant) {
        return Err(wrong());
    }
    EnvFilter::builder().parse(parts.join(",")).map_err(|_| wrong())
}

impl LogFormat {
    /// As they are written.
    pub const NAMES: [(&str, Self); 2] = [("text", Self::Text), ("json", Self::Json)];
}

impl LevelError {
    /// What to do about it, for the operator.
    pub const REMEDY: &str = "use error, warn, info, debug or trace";
}

impl Control {
    /// The configuration has been read again: `level` holds from now on.
    ///
    /// # Errors
    /// [`LogError::Level`]; then nothing has changed.
    pub fn configure(&self, level: &str) -> Result<(), LogError> {
        let mut filters = self.lock();
        self.apply(level)?;
        *filters = Filters { configured: level.to_owned(), current: level.to_owned() };
        Ok(())
    }

    /// Sets the level for everything, until the next change or restart.
    ///
    /// # Errors
    /// None that is known; [`LogError::Taken`] should the log be gone.
    pub fn set(&self, level: Level) -> Result<(), LogError> {
        let mut filters = self.lock();
        self.apply(level.name())?;
        level.name().clone_into(&mut filters.current);
        Ok(())
    }

    /// Goes back to what the configuration says.
    ///
    /// # Errors
    /// As [`Control::set`].
    pub fn reset(&self) -> Result<(), LogError> {
        let mut filters = self.lock();
        self.apply(&filters.configured)?;
        filters.current = filters.configured.clone();
        Ok(())
    }

    /// The level that holds now. Of a filter with several parts it is the one that names no module.
    pub fn current(&self) -> Level {
        Level::of(&self.lock().current)
    }

    /// The level that the configuration gives.
    pub fn configured(&self) -> Level {
        Level::of(&self.lock().configured)
    }

    fn apply(&self, filter: &str) -> Result<(), LogError> {
        self.handle.reload(parse(filter)?).map_err(|_| LogError::Taken)
    }

    fn lock(&self) -> MutexGuard<'_, Filters> {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Level {
    /// As it is written in a filter.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// The part of a filter that names no module; without one, tracing takes it for `error`.
    fn of(filter: &str) -> Self {
        let plain = filter.split(',').rev().find_map(|part| part.trim().parse::<LevelFilter>().ok());
        let named = plain.and_then(LevelFilter::into_level);
        [
            (tracing::Level::WARN, Self::Warn),
            (tracing::Level::INFO, Self::Info),
            (tracing::Level::DEBUG, Self::Debug),
            (tracing::Level::TRACE, Self::Trace),
        ]
        .into_iter()
        .find(|(level, _)| Some(*level) == named)
        .map_or(Self::Error, |(_, level)| level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_or_levels_of_modules() {
        for good in
            ["info", "WARN", "info,passant_server::issue=debug", "off", " info, a=debug", "\u{3000}a=info"]
        {
            assert_eq!(level(Some(good.to_owned())).as_deref(), Ok(good));
        }
        for bad in ["", "loud", "info,loud", "info,passant_server=loud", "[span{field=.*}]=info"] {
            assert_eq!(level(Some(bad.to_owned())), Err(LevelError(bad.to_owned())));
        }
        assert_eq!(level(None).as_deref(), Ok("info"));
    }

    #[test]
    fn the_level_of_a_filter_is_the_one_that_names_no_module() {
        for (filter, level) in [
            ("trace", Level::Trace),
            ("DEBUG", Level::Debug),
            ("passant_server=debug,warn", Level::Warn),
            ("info,passant_server::issue=trace", Level::Info),
            ("passant_server=debug", Level::Error),
            ("off", Level::Error),
        ] {
            assert_eq!(Level::of(filter), level, "{filter}");
        }
    }
}
