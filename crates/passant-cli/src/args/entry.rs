//! Which flags has `passant entry`?

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use passant_core::{EntryId, Selector, SpiffeId, TrustDomain, UnixTime};

use super::{Wait, instant, span};

#[derive(Subcommand)]
pub(crate) enum Entry {
    /// Register an entry
    Create(Box<EntryCreate>),
    /// Change some of an entry's fields; what is not named stays
    Update(Box<EntryUpdate>),
    /// Delete entries
    Delete {
        /// Their ids
        #[arg(required = true, value_parser = EntryId::parse)]
        ids: Vec<EntryId>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show one entry
    Show {
        /// Its id
        #[arg(value_parser = EntryId::parse)]
        id: EntryId,
    },
    /// List entries
    List(EntryFilter),
    /// Count entries
    Count(EntryFilter),
    /// Write entries to a file that import, apply and lint read; with --shape data SPIRE does, too
    Export(Box<Export>),
    /// Register the entries of a file, each with its id if it has one; those that are there already stay as they are
    Import(Import),
    /// Show what has to change so that the server has the entries of a file, and do it
    ///
    /// An entry of the file stands for the one of the server with its id, else for the one with its parent, SPIFFE ID and
    /// selectors.
    Apply(Box<Apply>),
}

#[derive(Args)]
pub(crate) struct Export {
    /// The file; standard output if left out
    pub(crate) file: Option<PathBuf>,
    /// Replace the file if there is one
    #[arg(long)]
    pub(crate) force: bool,
    /// Whose form the entries have
    #[arg(long, value_enum, default_value_t = Shape::Show)]
    pub(crate) shape: Shape,
    #[command(flatten)]
    pub(crate) filter: EntryFilter,
}

/// The two forms that SPIRE has for entries in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// What `spire-server entry show -output json` prints.
    Show,
    /// What `spire-server entry create -data` takes.
    Data,
}

#[derive(Args)]
pub(crate) struct Import {
    /// The file, in either of the forms of export; - for standard input
    pub(crate) file: PathBuf,
    /// Leave out fields that no entry has here, instead of refusing the file
    #[arg(long)]
    pub(crate) skip_unknown_fields: bool,
}

#[derive(Args)]
pub(crate) struct Apply {
    /// The file, in either of the forms of export; - for standard input
    pub(crate) file: PathBuf,
    /// Delete what the server has and the file has not: all of it, or what passes the filters below
    #[arg(long)]
    pub(crate) prune: bool,
    /// Only show the differences: exits with 3 if there are any
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Make the changes without asking
    #[arg(long, short = 'y', conflicts_with = "dry_run")]
    pub(crate) yes: bool,
    /// Leave out fields that no entry has here, instead of refusing the file
    #[arg(long)]
    pub(crate) skip_unknown_fields: bool,
    #[command(flatten)]
    pub(crate) within: EntryFilter,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

#[derive(Args)]
#[command(group = ArgGroup::new("below").required(true))]
pub(crate) struct EntryCreate {
    /// The entry's id; the server chooses one if left out
    #[arg(long, value_parser = EntryId::parse)]
    pub(crate) id: Option<EntryId>,
    /// The SPIFFE ID to issue
    #[arg(long, value_parser = SpiffeId::parse)]
    pub(crate) spiffe_id: SpiffeId,
    /// The agent, node alias or workload below which the entry applies
    #[arg(long, group = "below", value_parser = SpiffeId::parse)]
    pub(crate) parent_id: Option<SpiffeId>,
    /// Make it a node alias: its selectors are those of nodes, its parent is the server
    #[arg(long, group = "below")]
    pub(crate) node: bool,
    /// A fact that must be attested, such as unix:uid:1000; all of them must be
    #[arg(long = "selector", required = true, value_name = "KIND:VALUE", value_parser = Selector::parse)]
    pub(crate) selectors: Vec<Selector>,
    #[command(flatten)]
    pub(crate) fields: EntryFields,
    #[command(flatten)]
    pub(crate) options: EntryOptions,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

#[derive(Args)]
pub(crate) struct EntryUpdate {
    /// The entry's id
    #[arg(value_parser = EntryId::parse)]
    pub(crate) id: EntryId,
    /// A new SPIFFE ID
    #[arg(long, value_parser = SpiffeId::parse)]
    pub(crate) spiffe_id: Option<SpiffeId>,
    /// A new parent ID
    #[arg(long, value_parser = SpiffeId::parse)]
    pub(crate) parent_id: Option<SpiffeId>,
    /// The new selectors, replacing all of the old ones
    #[arg(long = "selector", value_name = "KIND:VALUE", value_parser = Selector::parse)]
    pub(crate) selectors: Vec<Selector>,
    #[command(flatten)]
    pub(crate) fields: EntryFields,
    #[command(flatten)]
    pub(crate) options: EntryOptions,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

impl EntryUpdate {
    /// Whether no field is given.
    pub(crate) fn is_empty(&self) -> bool {
        let identity = self.spiffe_id.is_some() || self.parent_id.is_some() || !self.selectors.is_empty();
        !identity && self.fields == EntryFields::default() && self.options.is_empty()
    }
}

/// What Passant knows of an entry beyond SPIRE's fields.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EntryOptions {
    /// For whom a key is made: one for all processes of a node, as with SPIRE, or one for each process
    #[arg(long, value_enum)]
    pub(crate) key_scope: Option<KeyScope>,
    /// Keep the entry from agents that cannot honour --key-scope, SPIRE's among them [possible: true, false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) strict: Option<bool>,
}

impl EntryOptions {
    /// Whether none is given.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// For whom a key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyScope {
    /// All processes of a node.
    Node,
    /// One process.
    Instance,
}

/// The fields that an entry may have.
#[derive(Args, Debug, Default, PartialEq, Eq)]
pub(crate) struct EntryFields {
    /// Lifetime of X509-SVIDs, such as 30m; 0s for the server's default
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(crate) x509_svid_ttl: Option<Duration>,
    /// Lifetime of JWT-SVIDs, such as 5m; 0s for the server's default
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(crate) jwt_svid_ttl: Option<Duration>,
    /// A trust domain whose bundle the workload gets
    #[arg(long, value_name = "TRUST_DOMAIN", value_parser = TrustDomain::parse)]
    pub(crate) federates_with: Vec<TrustDomain>,
    /// A DNS name for the X509-SVID; the first is also its common name
    #[arg(long = "dns-name", value_name = "NAME")]
    pub(crate) dns_names: Vec<String>,
    /// When the entry ends: nothing issued for it is valid longer
    #[arg(long, value_name = "RFC3339", value_parser = instant)]
    pub(crate) expires_at: Option<UnixTime>,
    /// A word that tells the workload's identities apart
    #[arg(long)]
    pub(crate) hint: Option<String>,
    /// Let its X509-SVID administer the server [possible: true, false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) admin: Option<bool>,
    /// Let its X509-SVID ask for an intermediate authority [possible: true, false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) downstream: Option<bool>,
    /// For a secret store, not for the Workload API [possible: true, false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) store_svid: Option<bool>,
    /// Give each JWT-SVID a jti and never cache it [possible: true, false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) jwt_svid_include_jti: Option<bool>,
    /// Mint the X509-SVID only when a workload asks for it [possible: true, false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) disable_x509_svid_prefetch: Option<bool>,
}

#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EntryFilter {
    /// Only entries that issue this SPIFFE ID
    #[arg(long, value_parser = SpiffeId::parse)]
    pub(crate) spiffe_id: Option<SpiffeId>,
    /// Only entries below this parent ID
    #[arg(long, value_parser = SpiffeId::parse)]
    pub(crate) parent_id: Option<SpiffeId>,
    /// Only entries whose selectors compare with these as --match says
    #[arg(long = "selector", value_name = "KIND:VALUE", value_parser = Selector::parse)]
    pub(crate) selectors: Vec<Selector>,
    /// How the selectors compare
    #[arg(long = "match", value_enum, default_value_t = Match::Superset)]
    pub(crate) matching: Match,
    /// Only entries with this hint
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) hint: Option<String>,
    /// Only entries whose federated trust domains compare with these as --match-federates-with says
    #[arg(long, value_name = "TRUST_DOMAIN", value_parser = TrustDomain::parse)]
    pub(crate) federates_with: Vec<TrustDomain>,
    /// How the trust domains compare
    #[arg(long, value_enum, default_value_t = Match::Superset)]
    pub(crate) match_federates_with: Match,
    /// Only entries with the flag downstream, or only others [possible: true, false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) downstream: Option<bool>,
}

/// How what an entry or an agent has compares with what is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Match {
    /// The same.
    Exact,
    /// At least one in common.
    Any,
    /// All of them, perhaps more.
    #[default]
    Superset,
    /// None but these.
    Subset,
}
