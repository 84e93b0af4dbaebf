//! Which flags does `passant audit` take?

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};
use passant_core::{EntryId, Host, SpiffeId, UnixTime};

use super::{instant, span};

#[derive(Subcommand)]
pub(crate) enum Audit {
    /// Print the lines that are looked for, oldest first: all that is given must hold
    Search(Box<AuditSearch>),
    /// Check that no line was changed or taken out: exits with 1 if one was, and says where
    ///
    /// That the newest lines were cut off shows only against a head that was kept somewhere else: keep the one that is
    /// printed, and name it with --head the next time.
    Verify {
        /// A record, or the data directory that holds it, instead of that of a running server
        ///
        /// Of a directory that a server writes to, ask the server for the head: what is read here beside it need not last,
        /// and a head of such a line would accuse the record after a power failure.
        #[arg(long, value_name = "DIR")]
        record: Option<PathBuf>,
        /// The head that an earlier check has printed: that line must still be there
        #[arg(long, value_name = "HASH@SEQ")]
        head: Option<String>,
    },
}

#[derive(Args)]
pub(crate) struct AuditSearch {
    /// A record, or the data directory that holds it, instead of that of a running server
    #[arg(long, value_name = "DIR")]
    pub(crate) record: Option<PathBuf>,
    /// Written then or later: an instant, or how long ago, such as 2h
    #[arg(long, value_name = "RFC3339|SPAN", value_parser = moment)]
    pub(crate) since: Option<UnixTime>,
    /// Written then or earlier
    #[arg(long, value_name = "RFC3339|SPAN", value_parser = moment)]
    pub(crate) until: Option<UnixTime>,
    /// Of this kind, or one of these
    #[arg(long = "kind", value_name = "KIND", value_enum)]
    pub(crate) kinds: Vec<RecordKind>,
    /// A SPIFFE ID that the line names: as subject, as caller, or in what was done
    #[arg(long, value_parser = SpiffeId::parse)]
    pub(crate) spiffe_id: Option<SpiffeId>,
    /// A serial number in hex or decimal, or the jti of a JWT-SVID
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) serial: Option<String>,
    /// The id of an entry
    #[arg(long, value_name = "ID", value_parser = EntryId::parse)]
    pub(crate) entry: Option<EntryId>,
    /// A part of what the line says of the caller, such as "uid=0" or "role pay"
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) caller: Option<String>,
    /// A part of the gRPC method, such as BanAgent
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) method: Option<String>,
    /// A part of the reason
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) reason: Option<String>,
    /// Only so many of the newest; 0 prints all
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub(crate) limit: u32,
}

/// The kinds of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecordKind {
    /// A segment begins, or a server started.
    Start,
    /// Something is about to be signed.
    Intent,
    /// What became of it.
    Outcome,
    /// What became of it will never be known.
    Unknown,
    /// Something was done by hand.
    Act,
    /// A call was refused.
    Refusal,
}

/// An instant, or the one that lies a span back.
fn moment(text: &str) -> Result<UnixTime, String> {
    match span(text) {
        Ok(ago) => Ok(Host::system().now().minus(ago)),
        Err(_) => instant(text).map_err(|_| {
            format!("\"{text}\" is neither an instant like 2027-01-31T12:00:00Z nor a span like 2h")
        }),
    }
}
