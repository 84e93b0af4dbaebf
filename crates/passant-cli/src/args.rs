//! Which commands and flags are there?

mod audit;
mod entry;
mod explain;
mod import;
mod lint;
mod stop;

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use passant_core::{EntryId, Selector, SpiffeId, TrustDomain, UnixTime};

pub(crate) use self::audit::{Audit, AuditSearch, RecordKind};
pub(crate) use self::entry::{
    Apply, Entry, EntryCreate, EntryFields, EntryFilter, EntryOptions, EntryUpdate, Export,
    Import as EntryImport, KeyScope, Match, Shape,
};
pub(crate) use self::explain::{AgentSocket, Explain};
pub(crate) use self::import::{Import, LedgerFile, Spire, Undo};
pub(crate) use self::lint::{Accept, FailOn, Lint};
pub(crate) use self::stop::{ResumeTarget, StatusTarget, Stop, StopHow, Wait};

/// Identities for workloads: register, inspect and fetch them.
#[derive(Parser)]
#[command(name = "passant", version, max_term_width = 110, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// How to print: a table for people, or JSON with SPIRE's field names for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) server: ServerSocket,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Where the server's socket for operators is.
#[derive(Args, Clone)]
pub(crate) struct ServerSocket {
    /// The server's socket for operators: a path, with or without unix://
    #[arg(
        long = "server-socket",
        global = true,
        value_name = "PATH",
        env = "PASSANT_SERVER_SOCKET",
        default_value = "/run/passant-server/api.sock"
    )]
    pub(crate) path: String,
}

/// Where the Workload API is.
#[derive(Args, Clone)]
pub(crate) struct WorkloadSocket {
    /// The Workload API's address
    #[arg(
        long = "socket",
        value_name = "unix:///PATH",
        env = "SPIFFE_ENDPOINT_SOCKET",
        default_value = "unix:///run/passant-agent/api.sock"
    )]
    pub(crate) address: String,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a server and an agent here, and show a workload getting its identity
    Dev(Dev),
    /// Registration entries: which workload gets which SPIFFE ID
    #[command(subcommand, alias = "entries")]
    Entry(Entry),
    /// Join tokens, with which a node attests once
    #[command(subcommand, alias = "tokens")]
    Token(Token),
    /// Agents of attested nodes
    #[command(subcommand, alias = "agents")]
    Agent(Agent),
    /// Stop at once what is served of an entry, on a node or to a process, and see whom that has reached
    #[command(subcommand, alias = "stops")]
    Stop(Stop),
    /// Bundles: the trust domain's own, and those of foreign ones
    #[command(subcommand, alias = "bundles")]
    Bundle(Bundle),
    /// Move here from SPIRE, and back
    #[command(subcommand)]
    Import(Import),
    /// Federation relationships: from where the bundles of foreign trust domains are fetched
    #[command(subcommand)]
    Federation(Federation),
    /// The keys that the server signs with itself
    #[command(subcommand)]
    Authority(Authority),
    /// X509-SVIDs minted by the server for an operator
    #[command(subcommand)]
    X509(X509),
    /// JWT-SVIDs minted by the server for an operator
    #[command(subcommand)]
    Jwt(Jwt),
    /// The server's state: back it up, restore it, check it
    #[command(subcommand)]
    Store(Store),
    /// This process's own identity, from the Workload API
    #[command(subcommand)]
    Svid(Svid),
    /// Why the server lets a caller do something, or not
    #[command(subcommand)]
    Access(Access),
    /// Why a workload has an identity or none, and what would change that: exits with 3 if something stands in the way
    #[command(subcommand)]
    Explain(Explain),
    /// The decision record: what was signed, done and refused, with who, what, from where and why
    #[command(subcommand)]
    Audit(Audit),
    /// What the server holds, in a few numbers
    Debug,
    /// How much the server logs
    #[command(subcommand)]
    Logger(Logger),
    /// Ask the server, or the agent, whether it can be relied on: exits with 0 if so, else with 1
    #[command(visible_alias = "health")]
    Healthcheck(Healthcheck),
    /// Look for entries that are too broad, in each other's way, or for nobody: exits with 3 if there are findings
    Lint(Lint),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

#[derive(Subcommand)]
pub(crate) enum Access {
    /// Ask what the server would decide, without doing anything: exits with 0 if it would allow it, with 3 if it would refuse
    Check(Box<AccessCheck>),
}

#[derive(Args)]
pub(crate) struct AccessCheck {
    /// What would be done, such as entry.update; a wrong one is answered with the list
    pub(crate) verb: String,
    /// Who would call, over the network; you, if neither this nor --uid is given
    #[arg(long, value_name = "SPIFFE_ID", conflicts_with = "uid", value_parser = SpiffeId::parse)]
    pub(crate) caller: Option<SpiffeId>,
    /// The user of the server's machine who would call
    #[arg(long)]
    pub(crate) uid: Option<u32>,
    /// A group of that user; those of the user database if none is given
    #[arg(long = "gid", value_name = "GID", requires = "uid")]
    pub(crate) gids: Vec<u32>,
    /// The id of the entry that would be shown, changed or deleted
    #[arg(long, value_parser = EntryId::parse)]
    pub(crate) entry_id: Option<EntryId>,
    /// The SPIFFE ID that an entry would have
    #[arg(long, value_parser = SpiffeId::parse)]
    pub(crate) spiffe_id: Option<SpiffeId>,
    /// The parent ID that an entry would have
    #[arg(long, value_parser = SpiffeId::parse)]
    pub(crate) parent_id: Option<SpiffeId>,
    /// The selectors that an entry would have
    #[arg(long = "selector", value_name = "KIND:VALUE", value_parser = Selector::parse)]
    pub(crate) selectors: Vec<Selector>,
    /// The entry would have the admin flag
    #[arg(long)]
    pub(crate) admin: bool,
    /// The entry would have the downstream flag
    #[arg(long)]
    pub(crate) downstream: bool,
    /// The agent, the SPIFFE ID to mint, or the alias of a join token
    #[arg(long, value_name = "SPIFFE_ID", value_parser = SpiffeId::parse)]
    pub(crate) target: Option<SpiffeId>,
}

#[derive(Subcommand)]
pub(crate) enum Logger {
    /// Show the level that holds now, and the one that the configuration gives
    Get,
    /// Set the level until it is reset, set again, or the server restarts
    Set {
        /// The level
        #[arg(value_enum)]
        level: LogLevel,
    },
    /// Go back to the level that the configuration gives
    Reset,
}

/// How much is logged; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
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

#[derive(Args)]
pub(crate) struct Healthcheck {
    /// Ask the agent, on the Workload API's socket, instead of the server
    #[arg(long)]
    pub(crate) agent: bool,
    #[command(flatten)]
    pub(crate) socket: WorkloadSocket,
}

#[derive(Args)]
pub(crate) struct Dev {
    /// Keep state, configuration and sockets here, for the next run too; a new temporary folder if left out
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The trust domain to issue for
    #[arg(long, default_value = "example.org", value_parser = TrustDomain::parse)]
    pub(crate) trust_domain: TrustDomain,
    /// Lifetime of the X509-SVIDs
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = span)]
    pub(crate) svid_ttl: Duration,
}

#[derive(Subcommand)]
pub(crate) enum Token {
    /// Make a join token
    #[command(alias = "create")]
    Generate {
        /// How long it may be used
        #[arg(long, value_name = "SPAN", default_value = "10m", value_parser = span)]
        ttl: Duration,
        /// A further SPIFFE ID for the node that attests with it, for entries to name as their parent
        #[arg(long, value_parser = SpiffeId::parse)]
        spiffe_id: Option<SpiffeId>,
    },
}

#[derive(Subcommand)]
pub(crate) enum Agent {
    /// List the agents
    List(AgentFilter),
    /// Count the agents
    Count(AgentFilter),
    /// Show one agent
    Show {
        /// Its SPIFFE ID
        #[arg(value_parser = SpiffeId::parse)]
        spiffe_id: SpiffeId,
    },
    /// Forget an agent: it has to attest again. What is stopped of it stays stopped
    Evict {
        /// Its SPIFFE ID
        #[arg(value_parser = SpiffeId::parse)]
        spiffe_id: SpiffeId,
    },
    /// Ban an agent: it may not attest again, until it is evicted
    Ban {
        /// Its SPIFFE ID
        #[arg(value_parser = SpiffeId::parse)]
        spiffe_id: SpiffeId,
    },
    /// Forget the agents whose X509-SVIDs expired long ago; banned ones stay
    Purge(Purge),
}

#[derive(Args)]
pub(crate) struct AgentFilter {
    /// Only agents attested this way, such as join_token
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) attestation_type: Option<String>,
    /// Only agents whose selectors compare with these as --match says
    #[arg(long = "selector", value_name = "KIND:VALUE", value_parser = Selector::parse)]
    pub(crate) selectors: Vec<Selector>,
    /// How the selectors compare
    #[arg(long = "match", value_enum, default_value_t = Match::Superset)]
    pub(crate) matching: Match,
    /// Only banned agents, or only others [possible: true, false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) banned: Option<bool>,
    /// Only agents that can attest again by themselves, or only others [possible: true, false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) can_reattest: Option<bool>,
    /// Only agents whose X509-SVID ends before this
    #[arg(long, value_name = "RFC3339", value_parser = instant)]
    pub(crate) expires_before: Option<UnixTime>,
}

#[derive(Args)]
pub(crate) struct Purge {
    /// How long ago the X509-SVID must have expired
    #[arg(long, value_name = "SPAN", default_value = "30d", value_parser = span)]
    pub(crate) expired_for: Duration,
    /// Agents that cannot attest again by themselves too, such as those of join tokens: they need a new token to come back
    #[arg(long)]
    pub(crate) all: bool,
    /// Only show which: exits with 3 if there are any
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Subcommand)]
pub(crate) enum Bundle {
    /// Print the trust domain's bundle, or that of a foreign trust domain
    Show {
        /// The foreign trust domain
        #[arg(value_parser = TrustDomain::parse)]
        trust_domain: Option<TrustDomain>,
        /// The form; JSON output (-o json) has SPIRE's form instead
        #[arg(long, value_enum, default_value_t = BundleFormat::Pem)]
        format: BundleFormat,
    },
    /// List the bundles of foreign trust domains
    List,
    /// Count the bundles, the trust domain's own among them
    Count,
    /// Add or replace the bundle of a foreign trust domain
    Set {
        /// The foreign trust domain
        #[arg(value_parser = TrustDomain::parse)]
        trust_domain: TrustDomain,
        /// A file with the bundle; - for standard input
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Its form; told by its first character if left out
        #[arg(long, value_enum)]
        format: Option<BundleFile>,
    },
    /// Delete the bundle of a foreign trust domain
    Delete {
        /// The foreign trust domain
        #[arg(value_parser = TrustDomain::parse)]
        trust_domain: TrustDomain,
        /// What becomes of the entries that federate with it
        #[arg(long, value_enum, default_value_t = DeleteMode::Restrict)]
        mode: DeleteMode,
    },
}

#[derive(Subcommand)]
pub(crate) enum Federation {
    /// List the relationships
    List,
    /// Show how the fetching of each bundle goes
    Status,
    /// Show one relationship
    Show {
        /// The foreign trust domain
        #[arg(value_parser = TrustDomain::parse)]
        trust_domain: TrustDomain,
    },
    /// Have the bundle of a foreign trust domain fetched from now on
    Create(FederationFields),
    /// Change some of a relationship's fields; what is not named stays
    Update(FederationFields),
    /// Federate no longer: the bundle is deleted, too
    Delete {
        /// The foreign trust domain
        #[arg(value_parser = TrustDomain::parse)]
        trust_domain: TrustDomain,
    },
    /// Fetch the bundle now
    Refresh {
        /// The foreign trust domain
        #[arg(value_parser = TrustDomain::parse)]
        trust_domain: TrustDomain,
    },
}

#[derive(Args)]
pub(crate) struct FederationFields {
    /// The foreign trust domain
    #[arg(value_parser = TrustDomain::parse)]
    pub(crate) trust_domain: TrustDomain,
    /// Where its bundle is served
    #[arg(long, value_name = "https://...")]
    pub(crate) url: Option<String>,
    /// The endpoint proves itself by an X509-SVID with this SPIFFE ID
    #[arg(long, value_name = "SPIFFE_ID", conflicts_with = "web", value_parser = SpiffeId::parse)]
    pub(crate) spiffe: Option<SpiffeId>,
    /// The endpoint proves itself by a certificate of the Web PKI
    #[arg(long)]
    pub(crate) web: bool,
    /// A file with the bundle that the trust domain is to have at once; - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: Option<PathBuf>,
    /// The form of that file; told by its first character if left out
    #[arg(long, value_enum)]
    pub(crate) bundle_format: Option<BundleFile>,
}

#[derive(Subcommand)]
pub(crate) enum Authority {
    /// Those that sign X509-SVIDs
    #[command(subcommand)]
    X509(AuthorityStep),
    /// Those that sign JWT-SVIDs
    #[command(subcommand)]
    Jwt(AuthorityStep),
}

#[derive(Subcommand)]
pub(crate) enum AuthorityStep {
    /// Show which one signs, which is prepared, and which one signed before
    Show,
    /// Make a new one and publish it in the bundle; it does not sign yet
    Prepare,
    /// Sign with the prepared one from now on
    Activate {
        /// Its id
        id: String,
    },
    /// Have agents replace what one signed that signs no more
    Taint {
        /// Its id
        id: String,
    },
    /// Take a tainted one out of the bundle: what it signed verifies no more
    Revoke {
        /// Its id
        id: String,
    },
}

/// The forms in which a bundle is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BundleFile {
    /// X.509 authorities, one section each.
    Pem,
    /// The SPIFFE bundle document.
    Spiffe,
}

/// What becomes of the entries that federate with a trust domain whose bundle is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeleteMode {
    /// The bundle stays as long as there are any.
    Restrict,
    /// They are deleted too.
    Delete,
    /// They stay, and no longer federate with it.
    Dissociate,
}

/// The forms of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BundleFormat {
    /// The X.509 authorities.
    Pem,
    /// The SPIFFE bundle document.
    Spiffe,
    /// The JWT authorities as a standard JWK Set.
    Jwks,
}

#[derive(Subcommand)]
pub(crate) enum X509 {
    /// Mint an X509-SVID with a new key
    Mint {
        /// The SPIFFE ID
        #[arg(long, value_parser = SpiffeId::parse)]
        spiffe_id: SpiffeId,
        /// Its lifetime; the server's default if left out
        #[arg(long, value_name = "SPAN", value_parser = span)]
        ttl: Option<Duration>,
        /// A DNS name
        #[arg(long = "dns-name", value_name = "NAME")]
        dns_names: Vec<String>,
        /// Write svid.pem, key.pem (mode 0600) and bundle.pem here instead of printing them
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub(crate) enum Jwt {
    /// Mint a JWT-SVID
    Mint {
        /// The SPIFFE ID
        #[arg(long, value_parser = SpiffeId::parse)]
        spiffe_id: SpiffeId,
        /// Who is to accept it, such as spiffe://example.org/reports
        #[arg(long, required = true)]
        audience: Vec<String>,
        /// Its lifetime; the server's default if left out
        #[arg(long, value_name = "SPAN", value_parser = span)]
        ttl: Option<Duration>,
        /// Write it here, with mode 0600, instead of printing it
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub(crate) enum Store {
    /// Write the state of the running server to a file: everything but private keys
    Backup {
        /// The file, which gets mode 0600
        file: PathBuf,
        /// Replace the file if there is one
        #[arg(long)]
        force: bool,
    },
    /// Bring the state back from a backup, into a data directory without state, while no server runs there
    ///
    /// What keys.json and the decision record in the directory hold stays; bans, evictions and deletions that the record
    /// tells of are done again. Prints what cannot be brought back. Run it as the server's user.
    Restore(Restore),
    /// Check a backup, or the data directory of a server that does not run; exits with 1 when there is a fault
    Check {
        /// The backup or the directory
        #[arg(value_name = "PATH")]
        what: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct Restore {
    /// The backup
    pub(crate) backup: PathBuf,
    /// The server's configuration, which names directory and trust domain
    #[arg(long, value_name = "FILE", required_unless_present = "data_dir", conflicts_with_all = ["data_dir", "trust_domain"])]
    pub(crate) config: Option<PathBuf>,
    /// The server's data directory
    #[arg(long, value_name = "DIR", requires = "trust_domain")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The trust domain that the backup must be of
    #[arg(long, requires = "data_dir", value_parser = TrustDomain::parse)]
    pub(crate) trust_domain: Option<TrustDomain>,
    /// Restore unspent join tokens too; only when it is sure that none was spent after the backup
    #[arg(long)]
    pub(crate) keep_tokens: bool,
}

#[derive(Subcommand)]
pub(crate) enum Svid {
    /// Fetch this process's X509-SVIDs
    X509 {
        #[command(flatten)]
        socket: WorkloadSocket,
        /// Write svid.N.pem, svid.N.key (mode 0600), bundle.N.pem and federated_bundle.N.M.pem here
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
    },
    /// Fetch JWT-SVIDs for an audience
    Jwt {
        #[command(flatten)]
        socket: WorkloadSocket,
        /// Who is to accept it, such as spiffe://example.org/reports; repeat it for several in one token
        #[arg(long, required = true)]
        audience: Vec<String>,
        /// Only for this one of this process's SPIFFE IDs
        #[arg(long, value_parser = SpiffeId::parse)]
        spiffe_id: Option<SpiffeId>,
    },
    /// Print each update of this process's X509-SVIDs, until interrupted
    Watch {
        #[command(flatten)]
        socket: WorkloadSocket,
    },
    /// Have the agent validate a JWT-SVID
    Validate {
        #[command(flatten)]
        socket: WorkloadSocket,
        /// The audience it must be for
        #[arg(long)]
        audience: String,
        /// The token; - reads it from standard input
        token: String,
    },
}

impl FederationFields {
    /// Whether no field is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.url.is_none() && self.spiffe.is_none() && !self.web && self.bundle.is_none()
    }
}

/// What is wrong with the arguments of `command`, such as `["entry", "update"]`, beyond what clap finds by itself: told as
/// clap tells it, with its exit code.
pub(crate) fn wrong(command: &[&str], message: impl Display) -> anyhow::Error {
    fn of(at: &mut clap::Command, path: &[&str], message: &dyn Display) -> clap::Error {
        if let [name, path @ ..] = path
            && let Some(at) = at.find_subcommand_mut(name)
        {
            return of(at, path, message);
        }
        at.error(ErrorKind::MissingRequiredArgument, message)
    }
    let mut cli = Cli::command();
    cli.build();
    of(&mut cli, command, &message).into()
}

/// A span such as `90s`, `10m`, `1h30m`, `7d`.
fn span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is no span: write it like 90s, 10m, 1h30m or 7d");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let count: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = match rest.as_bytes()[digits] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 24 * 3600,
            _ => return Err(wrong()),
        };
        total = total.saturating_add(Duration::from_secs(unit).saturating_mul(count));
        rest = &rest[digits + 1..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// An instant in RFC 3339.
fn instant(text: &str) -> Result<UnixTime, String> {
    UnixTime::parse_rfc3339(text)
        .ok_or_else(|| format!("\"{text}\" is no instant: write it like 2027-01-31T12:00:00Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_flag_takes_no_argument_that_is_not_its_own() {
        for (before, flag) in [("update", "--admin"), ("update", "--downstream")] {
            let cli = Cli::try_parse_from(["passant", "entry", before, flag, "web"]).unwrap();
            let Command::Entry(Entry::Update(args)) = cli.command else { panic!("another command") };
            assert_eq!(args.id.as_str(), "web");
        }
        let cli = Cli::try_parse_from(["passant", "entry", "update", "web", "--admin=false"]).unwrap();
        let Command::Entry(Entry::Update(args)) = cli.command else { panic!("another command") };
        assert_eq!(args.fields.admin, Some(false));
    }

    /// To a server an empty one says nothing, and so everything passes.
    #[test]
    fn an_empty_filter_is_refused() {
        for wrong in [
            &["entry", "apply", "--prune", "--hint", "", "a.json"][..],
            &["entry", "list", "--hint="],
            &["agent", "count", "--attestation-type", ""],
        ] {
            let error = Cli::try_parse_from(["passant"].iter().chain(wrong)).err();
            assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::InvalidValue), "{wrong:?}");
        }
        assert!(Cli::try_parse_from(["passant", "entry", "update", "web", "--hint", ""]).is_ok());
    }

    #[test]
    fn wrong_arguments_are_told_with_their_command() {
        let error = wrong(&["entry", "update"], "nothing to change was named").downcast::<clap::Error>();
        let told = error.unwrap().to_string();
        assert!(told.contains("nothing to change was named"), "{told}");
        assert!(told.contains("passant entry update"), "{told}");
    }

    #[test]
    fn spans_are_read_with_their_units() {
        assert_eq!(span("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(span("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(span("0s"), Ok(Duration::ZERO));
        for wrong in ["", "10", "m", "-1s", "1x", "1h ", "\u{663}s", "99999999999s"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_entry_needs_a_parent_or_to_be_a_node_alias() {
        let parse = |more: &[&str]| {
            let base = [
                "passant",
                "entry",
                "create",
                "--spiffe-id",
                "spiffe://example.org/a",
                "--selector",
                "unix:uid:0",
            ];
            Cli::try_parse_from(base.iter().chain(more)).is_ok()
        };
        assert!(!parse(&[]));
        assert!(parse(&["--node"]));
        assert!(parse(&["--parent-id", "spiffe://example.org/b"]));
        assert!(!parse(&["--node", "--parent-id", "spiffe://example.org/b"]));
    }
}
