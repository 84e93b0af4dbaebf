//! What do the rows about minting stand on? A whole issuer on one thread, over a state in memory.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use passant_attest::node::{Dialog, DialogError, join_token};
use passant_core::csr;
use passant_core::keys::KeyType;
use passant_core::{EntryDraft, EntryId, Host};
use passant_server::attest_node::{NodeAttestation, NodeMethod};
use passant_server::authority::{Authorities, AuthorityConfig, AuthorityParts};
use passant_server::caller::{AgentCaller, Callers, ConnPeer, PeerSvid};
use passant_server::issue::{IssueConfig, Issuer, SigningPool};
use passant_server::journal::Journal;
use passant_server::keystore::MemoryKeys;
use passant_server::metrics::Metrics;
use passant_server::record::segments::MemorySegments;
use passant_server::record::{DecisionLog, Retention};
use passant_server::state::{Change, JoinToken};
use passant_server::store::memory::MemoryStore;
use tokio::runtime::Runtime;

use crate::entries;

const HOUR: Duration = Duration::from_secs(3600);
/// The one agent's join token.
const TOKEN: &str = "bench-token";
/// Little is kept of the decision record, so that memory does not fill up with it.
const RETENTION: Retention =
    Retention { segment_bytes: 4 << 20, keep_bytes: 16 << 20, keep_for: Duration::from_secs(24 * 3600) };

/// An issuer, and an agent with [`entries::PER_AGENT`] entries that asks it.
pub(crate) struct Rig {
    /// Runs everything on the thread that measures.
    pub(crate) runtime: Runtime,
    pub(crate) issuer: Issuer,
    pub(crate) agent: AgentCaller,
    /// The agent's entries.
    pub(crate) entry_ids: Vec<String>,
    pub(crate) host: Host,
}

impl Rig {
    /// With its decision record in memory, or durable in the directory `record`.
    pub(crate) fn new(record: Option<&Path>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let host = Host::system();
        let (issuer, agent, entry_ids) = runtime.block_on(assemble(record, &host))?;
        Ok(Self { runtime, issuer, agent, entry_ids, host })
    }

    /// A CSR for each entry, with a key of its own.
    pub(crate) fn csrs(&self) -> Result<Vec<Vec<u8>>> {
        let csr = |_| Ok(csr::make(&*self.host.keys.generate(KeyType::EcP256)?, None)?);
        self.entry_ids.iter().map(csr).collect()
    }
}

async fn assemble(record: Option<&Path>, host: &Host) -> Result<(Issuer, AgentCaller, Vec<String>)> {
    let trust_domain = entries::trust_domain();
    let store = MemoryStore::ephemeral(&trust_domain, host);
    let journal = Journal::open(Box::new(store), &trust_domain, host.clone())?;
    let record = match record {
        Some(dir) => DecisionLog::open(dir, RETENTION, host.clone())?,
        None => DecisionLog::over(Box::new(MemorySegments::default()), RETENTION, host.clone())?,
    };
    let pool = SigningPool::inline();
    let parts = AuthorityParts {
        journal: journal.clone(),
        keystore: Arc::new(MemoryKeys::default()),
        record: record.clone(),
        host: host.clone(),
        pool: pool.clone(),
    };
    let authorities = Arc::new(Authorities::open(parts, authority_config()).await?);
    let metrics = Arc::new(Metrics::default());
    let issuer =
        Issuer::new(journal.clone(), authorities, record, host.clone(), pool, issue_config(), metrics);
    let agent = attested(&journal, &issuer, host).await?;
    let entry_ids = registered(&journal, &agent, host).await?;
    Ok((issuer, agent, entry_ids))
}

fn authority_config() -> AuthorityConfig {
    AuthorityConfig {
        ca_ttl: 24 * HOUR,
        x509_key_type: KeyType::EcP256,
        jwt_key_type: KeyType::EcP256,
        x509_leaf_ttl: HOUR,
        jwt_leaf_ttl: HOUR / 12,
        settle: Duration::from_secs(5),
        refresh_hint: None,
        accept_lost_keys: false,
    }
}

fn issue_config() -> IssueConfig {
    IssueConfig {
        x509_svid_ttl: HOUR,
        jwt_svid_ttl: HOUR / 12,
        agent_ttl: HOUR,
        downstream_ttl: 24 * HOUR,
        server_ttl: HOUR,
        jwt_issuer: None,
        key_type: KeyType::EcP256,
    }
}

/// An agent that has attested by a join token, as the server sees it when it calls.
async fn attested(journal: &Journal, issuer: &Issuer, host: &Host) -> Result<AgentCaller> {
    let token = JoinToken {
        by_role: false,
        hash: join_token::TokenHash::of(TOKEN),
        expires_at: host.now().plus(HOUR),
        alias: None,
        spent: None,
    };
    journal.submit(move |_| Ok((vec![Change::PutToken(token)], ()))).await?;
    let nodes =
        NodeAttestation::new(journal.clone(), issuer.clone(), vec![NodeMethod::JoinToken], host.clone());
    let csr = csr::make(&*host.keys.generate(KeyType::EcP256)?, None)?;
    let caller = "a bench".to_owned();
    let attested = nodes.attest(join_token::METHOD, TOKEN.as_bytes(), &csr, &mut Silent, caller).await?;
    let svid = Arc::new(PeerSvid::new(attested.svid.svid().clone()));
    let peer = ConnPeer::Remote { address: ([192, 0, 2, 1], 40_000).into(), svid: Some(svid) };
    Ok(Callers::new(journal.clone(), Arc::default(), host.clone()).agent(&peer).await?)
}

async fn registered(journal: &Journal, agent: &AgentCaller, host: &Host) -> Result<Vec<String>> {
    let trust_domain = entries::trust_domain();
    let mut ids = Vec::new();
    let mut changes = Vec::new();
    for number in 0..entries::PER_AGENT {
        let like = entries::entry(number)?;
        let draft = EntryDraft::new(like.spiffe_id.clone(), agent.id().clone(), like.selectors.clone());
        let id = EntryId::parse(&host.uuid())?;
        ids.push(id.to_string());
        changes.push(Change::PutEntry(Arc::new(draft.register(&trust_domain, id, 1, host.now())?)));
    }
    journal.submit(move |_| Ok((changes, ()))).await.context("failed to register entries")?;
    Ok(ids)
}

/// A node that answers no challenge, since none is sent.
struct Silent;

impl Dialog for Silent {
    fn challenge(
        &mut self,
        _challenge: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, DialogError>> + Send + '_>> {
        Box::pin(async { Err(DialogError::new(None)) })
    }
}
